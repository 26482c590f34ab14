"""What a prompt costs: asked of the server where it tells, else estimated and marked so.

Pictures are not sent for this: a blank one of the same size costs the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

from sightline.engines.remote.body import Part, Specials, encode, to_body, to_prompt
from sightline.engines.remote.kinds import Kind
from sightline.engines.remote.pictures import blank
from sightline.errors import UpstreamFailed
from sightline.images.budget import VisionBudget
from sightline.images.published import PublishedRule
from sightline.types import EngineRequest, Image, Message, Text, TokenCount

Ask = Callable[[str, bytes], Awaitable[bytes]]
"""Path and body to the body of a reply of status 200; raises what any other means."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_BYTES_PER_TOKEN = 3
_MESSAGE_TOKENS = 6
_TEMPLATE_TOKENS = 64
"""For one message, at most: its role, and a default system prompt."""
_TOOLS_TOKENS = 1024
"""What a template says about tools beside the tools."""
_UNKNOWN_CELL = 28**2
"""Pixels that become one token, where no budget tells."""
_PROBE_SIDE = 448


class _CountedImage(msgspec.Struct):
    tokens: _Count


class _InputTokens(msgspec.Struct):
    input_tokens: _Count
    images: tuple[_CountedImage, ...] = ()


class _Tokenized(msgspec.Struct):
    count: _Count


class Counter:
    """Counts the prompts of one model on one server."""

    def __init__(self, kind: Kind, model: str, budget: VisionBudget | None, specials: Specials, ask: Ask) -> None:
        """`budget`: None where what a picture costs is not known."""
        self._kind = kind
        self._model = model
        self._budget = budget
        self._specials = specials
        self._ask = ask
        self._expands: bool | None = None
        """Whether the server's count of tokens holds those of pictures; None: not asked yet."""

    def image_tokens(self, request: EngineRequest) -> tuple[int, ...]:
        """For each picture; 0 where that is not known."""
        if self._budget is None:
            return (0,) * len(request.images)
        return tuple(self._budget.tokens(i.served_width, i.served_height) for i in request.images)

    def no_more_than(self, request: EngineRequest) -> int:
        """Tokens that a prompt hardly exceeds: one for each byte of its text, and what templates add."""
        if request.prompt is not None:
            return _prompt_size(request.prompt) + 1
        size, added = _text_bytes(request), _TEMPLATE_TOKENS * (len(request.messages) + 1)
        return size + added + sum(self.image_tokens(request)) + (_TOOLS_TOKENS if request.tools else 0)

    async def count(self, request: EngineRequest) -> TokenCount:
        """Raises what `Ask` does."""
        if request.prompt is not None:
            return await self._count_prompt(request.prompt)
        parts = [Part(blank(image.served_width, image.served_height)) for image in request.images]
        known = not parts or (self._budget is not None and not isinstance(self._budget, PublishedRule))
        match self._kind.counts:
            case "input_tokens":
                return await self._input_tokens(request, parts)
            case "tokenize" if known:
                return await self._tokenize(request, parts)
            case "total" if known:
                return await self._total(request, parts)
            case _:
                return self._estimate(request)

    async def _count_prompt(self, prompt: str | tuple[int, ...]) -> TokenCount:
        """Of plain text. The token that begins every text is in it where the server counts it."""
        if not isinstance(prompt, str):
            return TokenCount(len(prompt))
        if self._kind.counts != "tokenize":
            return TokenCount(_prompt_size(prompt) // _BYTES_PER_TOKEN + 1, exact=False)
        body = encode({"model": self._model, "prompt": self._specials.broken(prompt)})
        told: _Tokenized = _decode(await self._ask("/tokenize", body), _Tokenized)
        return TokenCount(told.count)

    async def _input_tokens(self, request: EngineRequest, parts: Sequence[Part]) -> TokenCount:
        """Our own server's."""
        told = await self._told(request, parts)
        images = tuple(image.tokens for image in told.images)
        if len(images) != len(parts) or sum(images) > told.input_tokens:
            raise _nonsense()
        return TokenCount(told.input_tokens, images)

    async def _total(self, request: EngineRequest, parts: Sequence[Part]) -> TokenCount:
        """llama.cpp's: it tells what all of the prompt costs, and not what of that are pictures."""
        total, images = (await self._told(request, parts)).input_tokens, self.image_tokens(request)
        if sum(images) > total:
            raise _nonsense()
        return TokenCount(total, images)

    async def _told(self, request: EngineRequest, parts: Sequence[Part]) -> _InputTokens:
        body = to_body(request, self._model, self._kind, parts, self._specials)
        body = {name: value for name, value in body.items() if not name.startswith("stream")}
        told: _InputTokens = _decode(await self._ask("chat/completions/input_tokens", encode(body)), _InputTokens)
        return told

    async def _tokenize(self, request: EngineRequest, parts: Sequence[Part]) -> TokenCount:
        """vLLM's. Whether a picture is one token in it or all of its own has changed between its versions."""
        count = await self._tokenized(request, parts)
        images = self.image_tokens(request)
        if images and not await self._holds_pictures():
            count += sum(images) - len(images)
        if sum(images) > count:
            raise _nonsense()
        return TokenCount(count, images)

    async def _holds_pictures(self) -> bool:
        """Told by two questions that differ in a picture only."""
        if self._expands is None:
            assert self._budget is not None
            width, height, tokens = self._budget.serve(_PROBE_SIDE, _PROBE_SIDE)
            image = Image(np.zeros((height, width, 3), np.uint8), "", width, height, "image/png", 0)
            asked = [_ask(), _ask(image)]
            without, with_picture = [
                await self._tokenized(r, [Part(blank(width, height)) for _ in r.images]) for r in asked
            ]
            self._expands = with_picture - without >= tokens
        return self._expands

    async def _tokenized(self, request: EngineRequest, parts: Sequence[Part]) -> int:
        prompt = to_prompt(request, self._model, parts, self._specials)
        prompt.pop("tool_choice", None)
        told: _Tokenized = _decode(await self._ask("/tokenize", encode(prompt)), _Tokenized)
        return told.count

    def _estimate(self, request: EngineRequest) -> TokenCount:
        """From bytes of text, and pixels where no budget tells: a guess, right within a factor of two or so."""
        images = self.image_tokens(request)
        if self._budget is None:
            images = tuple(-(-image.served_width * image.served_height // _UNKNOWN_CELL) for image in request.images)
        text_tokens = _text_bytes(request) // _BYTES_PER_TOKEN + _MESSAGE_TOKENS * (len(request.messages) + 1)
        return TokenCount(text_tokens + sum(images), images, exact=False)


def _prompt_size(prompt: str | tuple[int, ...]) -> int:
    """In bytes of UTF-8, or tokens."""
    return len(prompt.encode("utf-8", "replace")) if isinstance(prompt, str) else len(prompt)


def _text_bytes(request: EngineRequest) -> int:
    texts = [part.text for m in request.messages for part in m.content if isinstance(part, Text)]
    texts += [text for m in request.messages for call in m.tool_calls for text in (call.name, call.arguments)]
    texts += [text for tool in request.tools for text in (tool.name, tool.description, _schema(tool.parameters))]
    return sum(len(text.encode("utf-8", "replace")) for text in texts)


def _ask(*images: Image) -> EngineRequest:
    return EngineRequest("count", "model", (Message[Image]("user", (*images, Text("?"))),))


def _schema(parameters: Mapping[str, Any]) -> str:
    return encode(parameters).decode()


def _decode(body: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeError):
        raise _nonsense() from None


def _nonsense() -> UpstreamFailed:
    return UpstreamFailed("The server behind this model counts tokens in a way that makes no sense.")
