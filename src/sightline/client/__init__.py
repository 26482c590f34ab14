"""A thin client: ask about pictures, get an answer. All else is the OpenAI SDK's job, pointed at the same server.

    from sightline import Client

    with Client() as client:
        answer = client.ask("What is this?", "photo.jpg")
        print(answer, answer.pictures[0].tokens)
        print(client.ask("And what colour is it?", after=answer))

pictures.py     paths, URLs, bytes, PIL and numpy pictures to what is sent
wire.py         bodies, answers, errors, when to try again: pure
blocking.py, asynchronous.py    the same calls over a connection pool
"""

from sightline.client.asynchronous import AsyncAnswerStream, AsyncClient
from sightline.client.blocking import AnswerStream, Client
from sightline.client.pictures import Picture
from sightline.client.wire import Answer, ApiError, ClientError, ConnectionFailed, PictureReport, StreamBroken

__all__ = [
    "Answer",
    "AnswerStream",
    "ApiError",
    "AsyncAnswerStream",
    "AsyncClient",
    "Client",
    "ClientError",
    "ConnectionFailed",
    "Picture",
    "PictureReport",
    "StreamBroken",
]
