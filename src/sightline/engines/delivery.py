"""From an engine's own thread to the event loop: what a request gets, and how much it may ask for."""

from __future__ import annotations

import asyncio
import logging
from typing import Final, TypeAlias

from sightline.errors import ContextLengthExceeded, EngineUnavailable, InvalidRequest, SightlineError
from sightline.types import EngineRequest, Event, SamplingParams, Text, TokenCount

log = logging.getLogger(__name__)

Events: TypeAlias = list[Event | SightlineError]
"""What a step gives to one generation; an error or a `Finish` is the last it gets."""

_CHARACTERS_PER_TOKEN: Final = 512
"""More than the longest tokens of any vocabulary have, which are runs of white space."""


class EventQueue:
    """Lists of events from the engine thread to one consumer on the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: asyncio.Queue[Events] = asyncio.Queue()

    def put(self, events: Events) -> None:
        """From any thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, events)
        except RuntimeError:  # the event loop is closed: nobody waits any more
            log.debug("events after the event loop was closed")

    async def get(self) -> Events:
        return await self._events.get()


def stopped() -> EngineUnavailable:
    """What everything under way gets when an engine is closed."""
    return EngineUnavailable("The engine was stopped.")


def room_for_answer(context_length: int, count: TokenCount, wanted: int | None, param: str = "messages") -> int:
    """How many tokens may be generated. `param`: `EngineRequest.param`. Raises `ContextLengthExceeded`."""
    if count.prompt_tokens + max(1, wanted or 0) > context_length:
        pictures = f", {sum(count.image_tokens)} of them for pictures" if count.image_tokens else ""
        room = f" and {wanted} were requested for the completion" if wanted else ", which leaves no room for an answer"
        raise ContextLengthExceeded(
            f"This model's context is {context_length} tokens. The {param} took {count.prompt_tokens} tokens{pictures}"
            f"{room}. Shorten the {param}, send fewer or smaller pictures, or lower max_tokens.",
            param=param,
        )
    return context_length - count.prompt_tokens if wanted is None else wanted


def refuse_hopeless(context_length: int, request: EngineRequest) -> None:
    """Of a text that cannot fit whatever its tokens are: to take it apart would cost seconds a megabyte, and a hundred
    times its size of memory. Raises `ContextLengthExceeded`."""
    texts = [part.text for message in request.messages for part in message.content if isinstance(part, Text)]
    if isinstance(request.prompt, str):
        texts.append(request.prompt)
    if (characters := sum(map(len, texts))) > context_length * _CHARACTERS_PER_TOKEN:
        raise ContextLengthExceeded(
            f"This model's context is {context_length} tokens. The {request.param} took {characters} characters, which "
            f"cannot fit. Shorten the {request.param}.",
            param=request.param,
        )


def verify_logit_bias(params: SamplingParams, vocabulary: int) -> None:
    """Raises `InvalidRequest` for a token that is not one of a vocabulary of this size."""
    if any(not 0 <= token < vocabulary for token in params.logit_bias):
        raise InvalidRequest(f"A token id in logit_bias is not one of 0 to {vocabulary - 1}.", param="logit_bias")
