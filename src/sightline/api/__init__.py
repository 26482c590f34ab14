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
content.py      messages, content parts, pictures
extension.py    what we add: the `sightline` object and headers

chat/           OpenAI's chat completions: routes, fields on the wire, the reply
completions/    and its completions
responses/      its Responses API, and Open Responses
transcriptions/ its audio
messages/       Anthropic's messages
ollama/         Ollama's own API
ovms.py         OpenVINO Model Server's: the routes of /v1 under /v3, states of models, probes
analyze.py      the simple service
models.py       GET /v1/models
errors.py       from error to status, error object and headers: the table
sse.py          an event stream, its keep-alive, its end
home.py         GET /, for Ollama's clients and for browsers
disconnect.py   a client that leaves ends its work
cors.py         which web pages may use the server
openapi/        /openapi.json and /docs, made of a row for each route
access.py       the line in the log
"""
