"""What the client says and hears: bodies, answers, errors, and when a call is tried again. Pure.

Retries are those of OpenAI's SDKs, which the server's headers are written for (wire contract, section 0).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sightline.client.pictures import Picture, to_url
from sightline.engines.remote.sse import MalformedStream, ServerEvents

_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 8.0
_MAX_RETRY_AFTER_S = 120.0
_RESERVED = {"messages", "stream", "stream_options", "n"}

Headers = Mapping[str, str]
"""Names in lower case."""


class ClientError(Exception):
    """Base of what a call can raise, beside what is wrong with a picture before it is sent."""


class ConnectionFailed(ClientError):
    """The server could not be reached, or the connection broke before it had answered."""


class StreamBroken(ClientError):
    """The answer began and did not end: the connection broke, or the server says what went wrong."""


class ApiError(ClientError):
    """The server answered, with an error."""

    def __init__(self, status: int, message: str, *, headers: Headers, error: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type: str | None = error.get("type")
        self.code: str | None = error.get("code")
        self.param: str | None = error.get("param")
        """The field or the picture at fault, by its place in the request."""
        self.request_id = headers.get("x-request-id")
        self.headers = headers


@dataclass(frozen=True, slots=True)
class PictureReport:
    """What became of a picture. Sizes are pixels, upright."""

    width: int
    height: int
    served_width: int
    """As the model saw it."""
    served_height: int
    tokens: int
    cached: bool
    """Its embedding was at hand: this time the picture cost nothing."""


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    model: str
    finish_reason: str
    """`stop`, `length` (cut at `max_tokens`), `tool_calls` or `content_filter`."""
    prompt_tokens: int
    completion_tokens: int
    pictures: tuple[PictureReport, ...] = ()
    engine: str | None = None
    refusal: str | None = None
    """Why the model would not answer, in its words; `text` is empty then."""
    request_id: str | None = None
    cached_tokens: int = 0
    """Of the prompt, what was kept from an earlier request and not computed again."""
    conversation: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    """All that was said until here, this answer included, as the wire has it: what `after=` goes on from."""

    def __str__(self) -> str:
        return self.text


# --- what is sent ----------------------------------------------------------------------------------------------------


def to_messages(
    question: str, pictures: Sequence[Picture], *, system: str | None, detail: str | None, after: Answer | None
) -> tuple[Mapping[str, Any], ...]:
    """Reads pictures from disk. Raises what `to_url` raises, and `ValueError` for a system text in mid-conversation."""
    if after is not None and system is not None:
        raise ValueError("The system text stands at the beginning of a conversation: leave it out with 'after'.")
    said: tuple[Mapping[str, Any], ...] = after.conversation if after is not None else ()
    if system is not None:
        said = ({"role": "system", "content": system},)
    image = {"detail": detail} if detail is not None else {}
    parts = [{"type": "image_url", "image_url": {"url": to_url(picture), **image}} for picture in pictures]
    content: Any = [*parts, {"type": "text", "text": question}] if parts else question
    return (*said, {"role": "user", "content": content})


def to_body(
    model: str, messages: Sequence[Mapping[str, Any]], fields: Mapping[str, Any], *, stream: bool
) -> dict[str, Any]:
    """Fields that are None are left out. Raises `TypeError` for those that the client itself fills."""
    if reserved := sorted(_RESERVED & fields.keys()):
        raise TypeError(f"{reserved[0]!r} is the client's own; for that much control use the OpenAI SDK.")
    body = {"model": model, "messages": list(messages), **{k: v for k, v in fields.items() if v is not None}}
    return {**body, "stream": True, "stream_options": {"include_usage": True}} if stream else body


def to_headers(api_key: str | None) -> dict[bytes | str, bytes | str]:
    headers: dict[bytes | str, bytes | str] = {"User-Agent": "Sightline-Client", "Accept-Encoding": "identity"}
    return headers if api_key is None else {**headers, "Authorization": f"Bearer {api_key}"}


# --- what comes back -------------------------------------------------------------------------------------------------


def choose_model(models: Mapping[str, Any]) -> str:
    """Of `GET /v1/models`: the first that can see, or may once it is loaded; else the first. Raises `ClientError`."""
    listed = [m for m in models.get("data", ()) if isinstance(m, Mapping) and isinstance(m.get("id"), str)]
    if not listed:
        raise ClientError("The server lists no models; name one with model=.")
    sees = (m for m in listed if (m.get("sightline") or {}).get("vision") is not False)
    return str(next(sees, listed[0])["id"])


def to_object(body: bytes) -> dict[str, Any]:
    """Raises `ClientError` for a reply that is no JSON object."""
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ClientError("The server's reply is not JSON: is the address that of its /v1?")
    return value


def to_answer(reply: Mapping[str, Any], headers: Headers, asked: Sequence[Mapping[str, Any]]) -> Answer:
    """Of a chat completion in one piece. Raises `ClientError` for a reply of another shape."""
    try:
        choice = reply["choices"][0]
        message = choice["message"]
        return _to_answer(
            message.get("content") or "",
            message.get("refusal"),
            choice["finish_reason"],
            reply,
            headers,
            asked,
        )
    except (KeyError, IndexError, TypeError) as error:
        raise ClientError("The server's reply is not a chat completion: is the address that of its /v1?") from error


def _to_answer(
    text: str,
    refusal: str | None,
    finish_reason: str,
    reply: Mapping[str, Any],
    headers: Headers,
    asked: Sequence[Mapping[str, Any]],
) -> Answer:
    ours = reply.get("sightline") or {}
    usage = reply.get("usage") or {}
    return Answer(
        text=text,
        model=reply["model"],
        finish_reason=finish_reason,
        prompt_tokens=usage.get("prompt_tokens", 0),
        completion_tokens=usage.get("completion_tokens", 0),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        pictures=tuple(
            PictureReport(p["width"], p["height"], p["served_width"], p["served_height"], p["tokens"], p["cached"])
            for p in ours.get("images", ())
        ),
        engine=ours.get("engine"),
        refusal=refusal,
        request_id=headers.get("x-request-id"),
        conversation=(*asked, {"role": "assistant", "content": text or refusal or ""}),
    )


class Streamed:
    """An answer as it comes: bytes in, text out, and the whole answer at the end."""

    def __init__(self, headers: Headers, asked: Sequence[Mapping[str, Any]]) -> None:
        self._headers = headers
        self._asked = asked
        self._events = ServerEvents()
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._finish_reason: str | None = None
        self._last: dict[str, Any] = {}
        self._done = False

    def feed(self, piece: bytes) -> Iterator[str]:
        """The pieces of text that are whole with these bytes. Raises `StreamBroken`."""
        try:
            for event in self._events.feed(piece):
                if event.data == "[DONE]":
                    self._done = True
                else:
                    yield from self._take(json.loads(event.data))
        except (MalformedStream, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StreamBroken("The server's stream is not one of chat completion chunks.") from error

    def _take(self, chunk: dict[str, Any]) -> Iterator[str]:
        if "error" in chunk:
            raise StreamBroken(str(chunk["error"].get("message", "The server stopped with an error.")))
        self._last |= {key: value for key, value in chunk.items() if value is not None}
        for choice in chunk["choices"]:
            delta = choice.get("delta") or {}
            if refusal := delta.get("refusal"):
                self._refusal.append(refusal)
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            if text := delta.get("content"):
                self._text.append(text)
                yield text

    def end(self) -> Answer:
        """Raises `StreamBroken` when the answer had not ended."""
        if not self._done or self._finish_reason is None:
            raise StreamBroken("The connection ended in the middle of the answer.")
        refusal = "".join(self._refusal) or None
        return _to_answer("".join(self._text), refusal, self._finish_reason, self._last, self._headers, self._asked)


# --- errors and retries ----------------------------------------------------------------------------------------------


def to_error(status: int, headers: Headers, body: bytes) -> ApiError:
    """Of a reply with a status from 300 on, in OpenAI's shape or not."""
    try:
        error = json.loads(body)["error"]
        message = str(error["message"])
    except (ValueError, KeyError, TypeError):
        error, message = {}, f"The server answered with the status {status}."
    return ApiError(status, message, headers=headers, error=error)


def retry_in_s(error: ClientError, attempt: int, max_retries: int) -> float | None:
    """Seconds until a call that failed is tried again; None: it is not. `attempt` counts from 0."""
    if attempt >= max_retries:
        return None
    backoff_s: float = min(_MAX_BACKOFF_S, _BACKOFF_S * 2**attempt) * random.uniform(0.75, 1.0)
    match error:
        case ConnectionFailed():
            return backoff_s
        case ApiError(status=status, headers=headers):
            told = headers.get("x-should-retry")
            if told == "false" or (told != "true" and status not in (408, 409, 429) and status < 500):
                return None
            return _told_s(headers, backoff_s)
        case _:
            return None


def _told_s(headers: Headers, otherwise_s: float) -> float | None:
    """What the server says of waiting; None: longer than anyone would."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit_s
        except (KeyError, ValueError):
            continue
        if seconds > 0:
            return seconds if seconds <= _MAX_RETRY_AFTER_S else None
    return otherwise_s
