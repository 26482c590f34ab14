"""A client that looks at how a request ends, byte by byte: whole and right, an error as the wire contract has it, or
neither. One connection for each request, because nothing of the last one must be left for the next."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import h11
from PIL import Image

from sightline.engines.remote.sse import MalformedStream, ServerEvents

End = Literal["ok", "error", "cut", "silent", "malformed", "wrong"]
"""`ok`: whole, and the right text. `error`: whole, and one of ours. `cut`: the connection ended before the answer, and
it shows. `silent`: nothing had ended when the client's patience did. `malformed` and `wrong` must never be."""


@dataclass
class Outcome:
    end: End
    took_s: float
    status: int = 0
    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    why: str = ""

    @property
    def path(self) -> list[str]:
        """Where it was tried, if at more than one place."""
        told = self.headers.get("x-sightline-path", "")
        return told.split(", ") if told else []


@dataclass(frozen=True)
class Question:
    """Of the fake engine, whose answer is known beforehand."""

    model: str
    number: int
    stream: bool = False
    picture: bool = False
    script: str = ""
    """Commands to the fake engine; with `say`, the answer is not looked at."""

    @property
    def body(self) -> bytes:
        text = f"q{self.number}{self.script}"
        content: Any = text
        if self.picture:
            content = [{"type": "image_url", "image_url": {"url": _PICTURE}}, {"type": "text", "text": text}]
        message = {"role": "user", "content": content}
        return json.dumps({"model": self.model, "messages": [message], "stream": self.stream}).encode()

    @property
    def answer(self) -> str:
        return f"I see {'1 picture: 112x112 mostly red' if self.picture else 'no pictures'}. You said: q{self.number}"


def _picture() -> str:
    """Of the least size that the fake engine serves, so that a gateway before it changes nothing."""
    file = io.BytesIO()
    Image.new("RGB", (112, 112), (255, 0, 0)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


_PICTURE = _picture()


async def ask(
    port: int, question: Question, *, timeout_s: float | None = None, patience_s: float | None = None
) -> Outcome:
    """`timeout_s` is told to the server; `patience_s` is the client's own."""
    began = time.perf_counter()
    reply = _Reply()
    headers = [("Host", "localhost"), ("Content-Type", "application/json"), ("Connection", "close")]
    headers.append(("Content-Length", str(len(question.body))))
    if timeout_s is not None:
        headers.append(("X-Request-Timeout", f"{timeout_s:g}"))
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(patience_s):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            http = reply.http
            writer.write(http.send(h11.Request(method="POST", target="/v1/chat/completions", headers=headers)) or b"")
            writer.write((http.send(h11.Data(question.body)) or b"") + (http.send(h11.EndOfMessage()) or b""))
            await writer.drain()
            while not reply.whole:
                reply.take(await reader.read(65536))
    except TimeoutError:
        reply.end, reply.why = "silent", f"after {patience_s} s"
    except (OSError, h11.RemoteProtocolError) as error:
        reply.end, reply.why = "cut", type(error).__name__
    finally:
        if writer is not None:
            writer.close()
    took_s = time.perf_counter() - began
    end, text, why = (reply.end, "", reply.why) if reply.end is not None else _judge(reply, question)
    return Outcome(end, took_s, reply.status, text, reply.headers, why)


class _Reply:
    def __init__(self) -> None:
        self.http = h11.Connection(h11.CLIENT)
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.whole = False
        self.end: End | None = None
        self.why = ""

    def take(self, data: bytes) -> None:
        """Raises `h11.RemoteProtocolError` for what is no HTTP, or ends before its end."""
        self.http.receive_data(data)
        while not isinstance(event := self.http.next_event(), type) and not self.whole:
            match event:
                case h11.Response():
                    self.status = event.status_code
                    self.headers = {name.decode(): value.decode() for name, value in event.headers}
                case h11.Data():
                    self.body += event.data
                case h11.EndOfMessage():
                    self.whole = True
                case h11.ConnectionClosed():
                    raise h11.RemoteProtocolError("it ended before an answer")


def _judge(reply: _Reply, question: Question) -> tuple[End, str, str]:
    """How a whole reply ended, its text, and what is wrong with it."""
    try:
        text = _streamed(reply) if reply.status == 200 and question.stream else _in_one_piece(reply)
    except _Refused:
        return "error", "", ""
    except (ValueError, KeyError, IndexError, TypeError, MalformedStream) as error:
        return "malformed", "", f"{type(error).__name__}: {error}"
    right = question.script or text == question.answer
    return ("ok" if right else "wrong"), text, "" if right else text


class _Refused(Exception):
    """A well-formed error."""


def _in_one_piece(reply: _Reply) -> str:
    body = json.loads(bytes(reply.body))
    if reply.status == 200:
        choice = body["choices"][0]
        if choice["finish_reason"] not in ("stop", "length"):
            raise ValueError(f"it ends with {choice['finish_reason']!r}")
        return str(choice["message"]["content"])
    _check_error(body["error"])
    if reply.status in (429, 503) and not 1 <= int(reply.headers["retry-after"]) <= 120:
        raise ValueError("no time after which to come back")
    raise _Refused


def _streamed(reply: _Reply) -> str:
    if not reply.headers["content-type"].startswith("text/event-stream"):
        raise ValueError("it is no stream")
    events = [event.data for event in ServerEvents().feed(bytes(reply.body))]
    text, finished = "", False
    for number, data in enumerate(events, 1):
        if data == "[DONE]":
            if number != len(events) or not finished:
                raise ValueError("an end that is none")
            return text
        chunk = json.loads(data)
        if "error" in chunk:
            _check_error(chunk["error"])
            if number != len(events):
                raise ValueError("it goes on after an error")
            raise _Refused
        for choice in chunk["choices"]:
            text += choice["delta"].get("content") or ""
            finished = finished or choice["finish_reason"] is not None
    raise ValueError("it ends without a word")


def _check_error(error: Any) -> None:
    if not (error["message"] and error["type"]) or "param" not in error or "code" not in error:
        raise ValueError("an error without its fields")
