"""Wire dialects: JSON in, JSON and events out. Nothing below this package knows HTTP.

app.py          routes; what happens to every request: its id, who may ask, errors, the log
entrance.py     who is let in, by which key, and how its rates stand
admin.py        control of the server, and /metrics
caller.py       on whose behalf a request is answered; `inside.py` and `elsewhere.py` ask for lines of batches
dialect.py      what the application knows of a dialect: routes, paths, the shape of its errors
exchange.py     around a dialect: read, count what is refused, generate, collect
collected.py    a stream of the service as one value
wire.py         a body read under a cap and parsed strictly; values encoded
bodies.py       how much of what clients send is held at once
forms.py        a form with files, read under the same cap
fields.py       a request's schema, and how a field is checked
chat.py         OpenAI's chat completions: body to request, and the routes
  chat_schema.py    the fields and objects on the wire
  content.py        messages, content parts, pictures
  chat_reply.py     events to a reply, whole or in chunks
  extension.py      what we add: the `sightline` object and headers
responses.py    OpenAI's Responses API, and Open Responses; its own map is in its head
messages.py     Anthropic's messages, in files as chat's; `messages_models.py` lists models for its clients
ollama.py       Ollama's own API, likewise; `ollama_embed.py`, `ollama_models.py`
ovms.py         OpenVINO Model Server's: the routes of /v1 under /v3, states of models, probes
analyze.py      the simple service
models.py       GET /v1/models
errors.py       from error to status, error object and headers: the table
sse.py          an event stream, its first event, its keep-alive
disconnect.py   a client that leaves ends its work
cors.py         which web pages may use the server
openapi.py      /openapi.json and /docs; `openapi_operations.py` has a row for each route, of which
                `openapi_document.py` makes the document and `openapi_page.py` the page
access.py       the line in the log
"""
