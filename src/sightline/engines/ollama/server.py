"""Ollama's API: what there is, what is in memory, pulling, loading, and the lines of an answer.

Source: https://docs.ollama.com/api and `api/types.go`. Errors are `{"error": "text"}`: told apart by status; the
text reaches the operator alone, of what the operator asked for (pulling, loading).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from sightline.engines.remote.body import encode
from sightline.engines.remote.failures import Refusal, read_refusal, to_error
from sightline.engines.remote.upstream import Incoming, Reply, Upstream
from sightline.errors import EngineUnavailable, UpstreamFailed

MAX_LINE_BYTES = 4 * 1024 * 1024
_MAX_SHOW_BYTES = 64 * 1024 * 1024
"""With it come a vocabulary and its merges."""
_CONTROL = 3
"""`LLAMA_TOKEN_TYPE_CONTROL` of llama.h: what a text must not become."""

T = TypeVar("T")


class Progress(msgspec.Struct, frozen=True):
    """A line of a pull."""

    status: str = ""
    digest: str = ""
    total: int = 0
    """Bytes of this layer."""
    completed: int = 0
    error: str | None = None


class Running(msgspec.Struct, frozen=True):
    """A model in memory."""

    name: str
    context_length: int = 0
    size: int = 0
    size_vram: int = 0
    expires_at: str = ""


class _Named(msgspec.Struct):
    name: str


class _Tags(msgspec.Struct):
    models: list[_Named] | None = None


class _Processes(msgspec.Struct):
    models: list[Running] | None = None


class _Version(msgspec.Struct):
    version: str


class _Debug(msgspec.Struct):
    rendered_template: str = ""


class _Rendered(msgspec.Struct):
    debug: _Debug | None = msgspec.field(default=None, name="_debug_info")


class _Show(msgspec.Struct):
    capabilities: list[str] | None = None
    model_info: dict[str, Any] | None = None
    remote_host: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """What Ollama says of a model."""

    capabilities: frozenset[str]
    context_length: int | None
    """That the model was made for."""
    specials: tuple[str, ...] | None
    """Texts of its control tokens; None: it does not tell."""
    in_cloud: bool


class OllamaServer:
    """One Ollama. Whatever goes wrong is one of our errors, as `Upstream` has them."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def version(self, deadline: float) -> tuple[int, ...]:
        """(0, 0, 0) for one that was built from its repository."""
        told = await self._get("api/version", _Version, deadline)
        numbers = told.version.partition("-")[0].split(".")
        return tuple(int(number) for number in numbers if number.isdecimal())

    async def models(self) -> tuple[str, ...]:
        """What it has on disk."""
        return tuple(model.name for model in (await self._get("api/tags", _Tags)).models or ())

    async def running(self) -> tuple[Running, ...]:
        """What it has in memory."""
        return tuple((await self._get("api/ps", _Processes)).models or ())

    async def show(self, model: str) -> Shown | None:
        """None: it does not have the model."""
        deadline = self._upstream.deadline()
        body = encode({"model": model, "verbose": True})
        async with self._upstream.open("POST", "api/show", [body], deadline) as incoming:
            if incoming.status == 404:
                return None
            if incoming.status != 200:
                raise to_error(await refusal(incoming))
            reply = await _whole(incoming, _MAX_SHOW_BYTES)
        return await asyncio.to_thread(lambda: to_shown(_decode(reply, _Show)))

    async def pull(self, model: str, told: Callable[[Progress], None]) -> None:
        """Raises `EngineUnavailable`, with Ollama's reason, which is for the operator who asked."""
        loop = asyncio.get_running_loop()
        body = encode({"model": model, "stream": True})
        last = Progress()
        async with self._upstream.open("POST", "api/pull", [body], loop.time() + _A_WEEK_S) as incoming:
            if incoming.status != 200:
                raise _failed(f"could not pull the model {model!r}", await incoming.whole())
            async with aclosing(lines(incoming)) as pulled:
                async for line in pulled:
                    last = _decode(line, Progress)
                    if last.error is not None:
                        break
                    told(last)
        if last.status != "success":
            raise _failed(f"could not pull the model {model!r}", msgspec.json.encode(last))

    async def load(self, model: str, fields: Mapping[str, Any]) -> None:
        """Into memory. `fields`: `keep_alive` and `options` of `POST /api/chat`. Raises as `pull`."""
        reply = await self._post({"model": model, "messages": [], **fields})
        if reply.status != 200:
            raise _failed(f"could not load the model {model!r}", reply.body)

    async def unload(self, model: str) -> None:
        """Whoever else may use it."""
        _expect(await self._post({"model": model, "messages": [], "keep_alive": 0}))

    async def rendered(self, body: Mapping[str, Any]) -> str | None:
        """The prompt that it makes of a chat; None: it does not tell, because it is too old or cannot."""
        reply = await self._post({**body, "stream": False, "_debug_render_only": True})
        debug = _decode(reply.body, _Rendered).debug if reply.status == 200 else None
        return debug.rendered_template if debug is not None else None

    async def _get(self, path: str, kind: type[T], deadline: float | None = None) -> T:
        reply = await self._upstream.get(path, deadline or self._upstream.deadline())
        _expect(reply)
        return _decode(reply.body, kind)

    async def _post(self, body: Mapping[str, Any]) -> Reply:
        """A chat that is no stream."""
        return await self._upstream.post("api/chat", encode(body), self._upstream.deadline())


_A_WEEK_S = 7 * 24 * 3600.0
"""For one pull; that it goes on is seen by its lines."""


async def lines(incoming: Incoming) -> AsyncGenerator[bytes, None]:
    """Of newline-delimited JSON, however its bytes are cut. What follows the last newline is no line."""
    rest = b""
    async with aclosing(incoming.pieces()) as pieces:
        async for piece in pieces:
            *whole, rest = (rest + piece).split(b"\n")
            if len(rest) > MAX_LINE_BYTES:
                raise UpstreamFailed("The server behind this model sent more than it may.")
            for line in whole:
                if line.strip():
                    yield line


def to_shown(said: _Show) -> Shown:
    info = said.model_info or {}
    length = info.get(f"{info.get('general.architecture')}.context_length")
    return Shown(
        frozenset(said.capabilities or ()),
        length if isinstance(length, int) and length > 0 else None,
        _specials(info.get("tokenizer.ggml.tokens"), info.get("tokenizer.ggml.token_type")),
        bool(said.remote_host),
    )


def _specials(tokens: Any, types: Any) -> tuple[str, ...] | None:
    if not (isinstance(tokens, list) and isinstance(types, list) and tokens and len(tokens) == len(types)):
        return None
    pairs = zip(tokens, types, strict=True)
    return tuple(token for token, kind in pairs if kind == _CONTROL and isinstance(token, str) and len(token) > 1)


async def refusal(incoming: Incoming) -> Refusal:
    """What a reply says whose status is not 200."""
    return read_refusal(incoming.status, await incoming.whole(), incoming.headers.get("retry-after"), frozenset())


def _expect(reply: Reply) -> None:
    if reply.status != 200:
        raise to_error(read_refusal(reply.status, reply.body, reply.headers.get("retry-after"), frozenset()))


async def _whole(incoming: Incoming, most: int) -> bytes:
    body = bytearray()
    async for piece in incoming.pieces():
        body += piece
        if len(body) > most:
            raise UpstreamFailed("The server behind this model sent more than it may.")
    return bytes(body)


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeError):
        raise UpstreamFailed("It answers with what Ollama does not say; see the option base_url.") from None


def _failed(what: str, body: bytes) -> EngineUnavailable:
    """With Ollama's reason, which is for the operator: no request was part of it."""
    try:
        told = msgspec.json.decode(body, type=Progress).error
    except (msgspec.MsgspecError, UnicodeError):
        told = None
    reason = "".join(c if c.isprintable() else " " for c in told or "it does not say why")
    return EngineUnavailable(f"Ollama {what}: {reason[:300]}")
