"""Providers behind LiteLLM's SDK: OpenAI, Anthropic, Gemini, Bedrock, Azure and some hundred others.

LiteLLM knows each provider's wire and nothing else is left to it: no retries, no fallbacks, no dropped parameters, no
callbacks, no logs, nothing downloaded. It runs in a process of its own, which sees of the environment what the option
`env` names (`worker/environment.py`). A request is made as for any server with chat completions (`remote/body.py`) and
what comes back is read as such (`remote/answer.py`): that is the form in which LiteLLM takes and gives everything.

One thing it gives is not believed: when a provider's stream breaks off, LiteLLM 1.106 invents an end (`stop`) and a
usage. What the provider said is in `received_finish_reason` and `intermittent_finish_reason`; a stream without either
is a broken one.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from sightline.config import ModelConfig
from sightline.engines import EngineInfo
from sightline.engines.litellm_provider.failures import explained
from sightline.engines.litellm_provider.options import LiteLLMOptions, read_options
from sightline.engines.litellm_provider.provider import Provider, import_litellm, look_up
from sightline.engines.provider_pictures import to_data_uris
from sightline.engines.remote.answer import Answer, with_pictures
from sightline.engines.remote.body import Part, Specials, to_body
from sightline.engines.remote.counting import Counter
from sightline.engines.remote.failures import too_long
from sightline.engines.remote.sse import ServerEvent
from sightline.engines.remote.upstream import stopped
from sightline.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    InvalidRequest,
    SightlineError,
    UnsupportedFeature,
    UpstreamFailed,
)
from sightline.types import Delta, EngineRequest, Event, Finish, Timing, TokenCount, Usage

__all__ = ["LiteLLMEngine", "LiteLLMOptions"]

T = TypeVar("T")

_LATER_S = 1.0
"""After our own time limits come LiteLLM's, so that it is always ours that are met."""
_MOST_TEMPERATURE: Mapping[str, float] = {"anthropic": 1.0}
_MOST_STOPS: Mapping[str, int] = {"openai": 4, "azure": 4, "gemini": 5, "vertex_ai": 5}
_NO_SPECIALS = Specials(())
"""Providers keep what a client writes from becoming special tokens themselves."""


class LiteLLMEngine:
    """A provider's model. At most `config.max_concurrent` answers are asked for at once; more wait here, in order."""

    def __init__(self, config: ModelConfig) -> None:
        """Raises `InvalidRequest` for options that cannot be meant."""
        self._config = config
        self._options = read_options(config)
        self._turn = asyncio.Semaphore(config.max_concurrent)
        self._provider: Provider | None = None
        self._scopes: set[asyncio.Timeout] = set()
        """Of whatever waits for the provider."""
        self._closed = False

    @property
    def info(self) -> EngineInfo:
        """Raises `EngineUnavailable` before `start` has returned."""
        return self._ready().info

    def _ready(self) -> Provider:
        if self._closed:
            raise stopped()
        if self._provider is None:
            raise EngineUnavailable("The engine has not been started.")
        return self._provider

    async def start(self) -> None:
        """Imports LiteLLM and reads its tables. The provider is not asked: that would cost."""
        if self._closed:
            raise stopped()
        if unset := [name for name in self._options.env if name not in os.environ]:
            raise EngineUnavailable(f"The environment variable {unset[0]} (option env) is not set.")
        self._provider = await asyncio.to_thread(lambda: look_up(import_litellm(), self._config, self._options))

    async def close(self) -> None:
        self._closed = True
        for scope in list(self._scopes):
            scope.reschedule(asyncio.get_running_loop().time())
        await asyncio.sleep(0)

    # --- counting ------------------------------------------------------------------------------------------------

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        """An estimate, and marked so: not every provider counts, and LiteLLM's own count is an estimate too."""
        self._check(request)
        return await self._counter().count(request)

    def _counter(self) -> Counter:
        provider = self._ready()
        return Counter(provider.kind, self._options.model, provider.budget, _NO_SPECIALS, _cannot_be_asked)

    def _check(self, request: EngineRequest) -> None:
        """What the provider cannot do is refused before it is called."""
        provider, sampling = self._ready(), request.sampling
        if not request.messages:
            raise InvalidRequest("'messages' must have 1 or more items.", param="messages")
        if request.images and provider.info.vision is None:
            raise InvalidRequest("This model cannot see pictures.", param="messages")
        if (sampling.max_tokens or 0) >= provider.info.context_length:
            raise too_long(provider.info.context_length)
        if sampling.temperature > (most := _MOST_TEMPERATURE.get(provider.name, 2.0)):
            raise InvalidRequest(f"'temperature' must be between 0 and {most:g} for this model.", param="temperature")
        if len(sampling.stop) > (stops := _MOST_STOPS.get(provider.name, 64)):
            raise InvalidRequest(f"This model takes at most {stops} stop strings.", param="stop")
        if provider.name not in ("openai", "azure") and any(message.name for message in request.messages):
            raise UnsupportedFeature(
                "This model's provider has no field for the name of who speaks; leave out 'name'.", param="messages"
            )
        for field, needed in (
            ("tools", bool(request.tools)),
            ("response_format", request.response_format.kind != "text"),
        ):
            if needed and field not in provider.params:
                raise UnsupportedFeature(f"This model's provider has no field for {field}.", param=field)

    # --- answering -----------------------------------------------------------------------------------------------

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        """As `Engine.generate`; raises `UpstreamFailed` where the provider broke."""
        self._check(request)
        deadline = asyncio.get_running_loop().time() + self._options.total_s
        await self._within(self._turn.acquire(), deadline)
        try:
            async with aclosing(self._answer(request, deadline)) as events:
                async for event in events:
                    yield event
        finally:
            self._turn.release()

    async def _answer(self, request: EngineRequest, deadline: float) -> AsyncGenerator[Event, None]:
        answer = Answer(request.request_id)
        arguments = await self._arguments(request, deadline)
        sent = time.perf_counter()
        first: float | None = None
        async with (
            self._stream(arguments, deadline) as stream,
            aclosing(self._deltas(answer, stream, deadline)) as deltas,
        ):
            async for delta in deltas:
                first = first or time.perf_counter()
                yield delta
        ended = time.perf_counter()
        timing = Timing(prefill_s=(first or ended) - sent, decode_s=ended - (first or ended))
        assert answer.reason is not None
        images = self._counter().image_tokens(request)
        usage = with_pictures(answer.usage or Usage(0, answer.num_tokens), images)
        yield Finish(answer.reason, usage, timing)

    async def _arguments(self, request: EngineRequest, deadline: float) -> dict[str, Any]:
        """Of `litellm.acompletion`."""
        provider = self._ready()
        uris = await to_data_uris(request.images, provider.limits)
        body = to_body(request, self._options.model, provider.kind, [Part(uri) for uri in uris], _NO_SPECIALS)
        for name in ("temperature", "top_p"):  # their default, and not every model has them, or both
            if body[name] == 1.0:
                del body[name]
            elif name not in provider.params:
                raise UnsupportedFeature(f"This model's provider has no field for {name}.", param=name)
        left = max(0.001, deadline - asyncio.get_running_loop().time())
        return {
            **body,
            **self._options.provider_arguments(),
            "timeout": left + _LATER_S,
            "max_retries": 0,
            "num_retries": 0,
            "drop_params": False,
            # Tools are our clients' own functions: they are passed on, never looked up at servers of LiteLLM's.
            "_skip_mcp_handler": True,
        }

    @asynccontextmanager
    async def _stream(self, arguments: Mapping[str, Any], deadline: float) -> AsyncGenerator[Any, None]:
        stream = await self._translated(self._ready().litellm.acompletion(**arguments), deadline)
        try:
            yield stream
        finally:
            await stream.aclose()

    async def _deltas(self, answer: Answer, stream: Any, deadline: float) -> AsyncGenerator[Delta, None]:
        """Until the stream ends. Raises `UpstreamFailed` when the provider has not said that it did."""
        while (chunk := await self._translated(anext(stream, None), deadline)) is not None:
            for delta in answer.take(ServerEvent(chunk.model_dump_json(exclude_none=True))):
                yield delta
        if stream.received_finish_reason is None and stream.intermittent_finish_reason is None:
            raise answer.broke_off()
        answer.take(ServerEvent("[DONE]"))

    async def _translated(self, awaitable: Awaitable[T], deadline: float) -> T:
        """Whatever LiteLLM raises is one of our errors."""
        try:
            return await self._within(awaitable, deadline)
        except SightlineError:
            raise
        except Exception as error:
            raise explained(error, self._ready(), self._config.name) from None

    async def _within(self, awaitable: Awaitable[T], deadline: float) -> T:
        """What is awaited, unless the provider is silent for too long, or no time is left, or we are closed."""
        loop = asyncio.get_running_loop()
        scope = asyncio.timeout_at(
            loop.time() if self._closed else min(loop.time() + self._options.silence_s, deadline)
        )
        try:
            async with scope:
                self._scopes.add(scope)
                try:
                    return await awaitable
                finally:
                    self._scopes.discard(scope)
        except TimeoutError:
            if self._closed:
                raise stopped() from None
            if loop.time() >= deadline:
                raise DeadlineExceeded(
                    f"The request took longer than the {self._options.total_s:g} s it may take."
                ) from None
            raise UpstreamFailed("The provider behind this model has not answered in time.") from None


async def _cannot_be_asked(path: str, body: bytes) -> bytes:
    raise AssertionError("a provider is never asked to count")
