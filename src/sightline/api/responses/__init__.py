"""OpenAI's Responses API, and Open Responses.

routes.py       the routes, and what is kept between requests
schema.py       the request's fields
items.py        items -> messages                        pure
request.py      a body and its conversation -> ChatRequest
answer.py       events -> the response, and its stream   pure
  objects.py    the response, its items, its events on the wire
store.py        what is kept, for how long, for whom
background.py   responses that run while nobody waits
compact.py      a conversation made short
"""
