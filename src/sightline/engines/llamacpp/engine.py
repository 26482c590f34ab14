"""The engine: what it may promise, what a prompt costs, and who may reuse whose prompt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec

from sightline.config import ModelConfig
from sightline.engines import EngineInfo, EngineState
from sightline.engines.llamacpp import files, launch
from sightline.engines.llamacpp.options import read_options
from sightline.engines.remote import RemoteEngine
from sightline.engines.remote.body import Part, Specials, encode, to_prompt
from sightline.engines.remote.failures import read_refusal, to_error, too_long
from sightline.engines.remote.kinds import KINDS, Kind
from sightline.engines.remote.options import RemoteOptions
from sightline.engines.remote.pictures import blank
from sightline.engines.remote.upstream import Address, stopped
from sightline.engines.server_process import Launch, ServerProcess
from sightline.errors import EngineUnavailable, InvalidRequest, UpstreamFailed
from sightline.images.budget import CellBudget
from sightline.types import EngineRequest, Event, Finish, TextDelta, TokenCount


class _Options(RemoteOptions, frozen=True, kw_only=True):
    """How `remote` speaks with our server."""

    constants: dict[str, Any]
    """Fields of every request; ours to change."""

    @property
    def row(self) -> Kind:
        return replace(KINDS[self.kind], constants=self.constants)


class _Counted(msgspec.Struct):
    input_tokens: int


class LlamaCppEngine:
    """A model on llama.cpp, in a server of its own. An `Engine`, and `Supervised`.

    At most `slots` answers are made at once; more wait here, in the order of arrival.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Raises `InvalidRequest` for options that cannot be meant, or a directory without a GGUF file."""
        self._options = read_options(config)
        self._files = files.find(config, self._options)
        self._slots = min(self._options.slots, config.max_concurrent)
        self._config = msgspec.structs.replace(config, max_concurrent=self._slots)
        self._setup: launch.Setup | None = None
        self._server: ServerProcess | None = None
        self._remote: RemoteEngine | None = None
        self._info: EngineInfo | None = None
        self._specials = Specials(())
        self._fields: dict[str, Any] = {"timings_per_token": True, "cache_prompt": self._options.prompt_cache}
        self._tenant: str | None = None
        self._closed = False

    @property
    def info(self) -> EngineInfo:
        """Raises `EngineUnavailable` before `start` has returned."""
        if self._info is None:
            raise EngineUnavailable("The engine has not been started.")
        return self._info

    @property
    def state(self) -> EngineState:
        if self._closed:
            return "failed"
        return self._server.state if self._server is not None else "unloaded"

    @property
    def restarts(self) -> int:
        return self._server.restarts if self._server is not None else 0

    @property
    def pid(self) -> int | None:
        """Of the process group of the server."""
        return self._server.pid if self._server is not None else None

    async def start(self) -> None:
        if self._closed:
            raise stopped()
        try:
            facts = await asyncio.to_thread(files.read_facts, self._files)
            budget = facts.budget if isinstance(facts.budget, CellBudget) else None
            self._setup = launch.to_setup(
                self._files, self._options, slots=self._slots, longest=facts.context_length, budget=budget
            )
            self._specials = Specials(facts.special_tokens)
            server = self._server = ServerProcess(
                self._config.name,
                Launch(self._command),
                start_timeout_s=self._config.start_timeout_s,
                stop_grace_s=self._options.stop_grace_s,
            )
            remote = self._remote = RemoteEngine(
                self._config, options=self._to_remote(facts, server.address), address=server.address
            )
            await server.start(self._is_well, remote.forget_pictures)
            await remote.start()
            self._info = await self._read_info(remote)
        except BaseException:
            await self.close()
            raise

    def _command(self, address: Address) -> list[str]:
        assert self._setup is not None
        assert address.socket is not None
        return launch.to_command(self._setup, address.socket, self._options.executable)

    def _to_remote(self, facts: files.Facts, address: Address) -> _Options:
        return _Options(
            base_url=address.base_url,
            kind="llamacpp",
            budget=files.to_option(facts.budget, self._files, self._options),
            max_pixels=self._options.max_pixels,
            special_tokens=facts.special_tokens,
            silence_s=self._options.silence_s,
            total_s=self._options.total_s,
            constants=self._fields,
        )

    async def _is_well(self) -> bool:
        return self._remote is not None and await self._remote.look() is not None

    async def _read_info(self, remote: RemoteEngine) -> EngineInfo:
        """Templates without tools get llama.cpp's own notation for them, which no model has learned."""
        props = await remote.look()
        abilities = props.get("chat_template_caps") if isinstance(props, dict) else None
        takes_tools = isinstance(abilities, dict) and abilities.get("supports_tools") is True
        info = remote.info
        return info if takes_tools else replace(info, features=info.features - {"tools"})

    # --- counting ------------------------------------------------------------------------------------------------

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        remote = await self._ready()
        count = await self._count(remote, request)
        wanted = request.sampling.max_tokens
        if count.prompt_tokens + (1 if wanted is None else wanted) > self.info.context_length:
            raise too_long(self.info.context_length)
        return count

    async def _count(self, remote: RemoteEngine, request: EngineRequest) -> TokenCount:
        """The server's own count, which runs the tokenizer and not the model. A blank picture costs what any does."""
        if request.images and self.info.vision is None:
            raise InvalidRequest("This model cannot see pictures.", param="messages")
        parts = [Part(blank(image.served_width, image.served_height)) for image in request.images]
        body = encode(to_prompt(request, self._config.name, parts, self._specials))
        upstream = remote.open()
        reply = await upstream.post("chat/completions/input_tokens", body, upstream.deadline())
        if reply.status != 200:
            refusal = read_refusal(reply.status, reply.body, None, frozenset({"messages", "tools"}))
            raise to_error(refusal, self.info.context_length)
        try:
            told = msgspec.json.decode(reply.body, type=_Counted).input_tokens
        except (msgspec.MsgspecError, UnicodeError):
            raise UpstreamFailed("The server behind this model counts tokens in a way that makes no sense.") from None
        vision = self.info.vision
        known = isinstance(vision, CellBudget)
        images = tuple(
            vision.tokens(i.served_width, i.served_height) if vision is not None and known else 0
            for i in request.images
        )
        return TokenCount(told, images)

    # --- answering -----------------------------------------------------------------------------------------------

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        """As `Engine.generate`."""
        remote = await self._ready()
        count = await self.count_tokens(request)
        self._meet(request.tenant)
        asked = _as_llamacpp_takes_it(request, room=self.info.context_length - count.prompt_tokens)
        async with aclosing(remote.generate(asked)) as events:
            async for event in events:
                if isinstance(event, Finish) and self._server is not None:
                    self._server.served()
                yield _without_others(event) if request.sampling.logprobs == 0 else event

    def _meet(self, tenant: str) -> None:
        """Prompts in slots are reused for as long as there is one tenant, whose they all are."""
        if self._tenant is None:
            self._tenant = tenant
        if tenant != self._tenant:
            self._fields["cache_prompt"] = False

    async def _ready(self) -> RemoteEngine:
        if self._closed:
            raise stopped()
        if self._server is None or self._remote is None or self._info is None:
            raise EngineUnavailable("The engine has not been started.")
        await self._server.ready()
        return self._remote

    async def close(self) -> None:
        self._closed = True
        if self._remote is not None:
            await self._remote.close()
        if self._server is not None:
            await self._server.close()


def _as_llamacpp_takes_it(request: EngineRequest, *, room: int) -> EngineRequest:
    """It is told how long an answer may be, and tells a token's log-probability only beside that of the likeliest."""
    sampling = request.sampling
    if sampling.max_tokens is None:
        sampling = replace(sampling, max_tokens=room)
    if sampling.logprobs == 0:
        sampling = replace(sampling, logprobs=1)
    return replace(request, sampling=sampling)


def _without_others(event: Event) -> Event:
    if not isinstance(event, TextDelta):
        return event
    return replace(event, logprobs=tuple(replace(told, top=()) for told in event.logprobs))
