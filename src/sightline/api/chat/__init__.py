"""OpenAI's chat completions.

routes.py   the request's side and the routes
schema.py   the fields and objects on the wire
reply.py    events to a reply, whole or in chunks
"""
