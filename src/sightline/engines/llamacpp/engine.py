"""The engine: its server, what it may promise, and who may reuse whose prompt."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec

from sightline.config import ModelConfig
from sightline.engines import EngineInfo, EngineState
from sightline.engines.llamacpp import files, launch, schemas
from sightline.engines.llamacpp.options import read_options
from sightline.engines.remote import RemoteEngine
from sightline.engines.remote.kinds import KINDS, Kind
from sightline.engines.remote.options import RemoteOptions, read_budget
from sightline.engines.remote.upstream import Address, stopped
from sightline.engines.server_process import Launch, ServerProcess
from sightline.errors import EngineUnavailable
from sightline.types import EngineRequest, Event, Finish, Image, Text, TextDelta, TokenCount


class _Options(RemoteOptions, frozen=True, kw_only=True):
    """How `remote` speaks with our server."""

    constants: dict[str, Any]
    """Fields of every request; ours to change."""

    @property
    def row(self) -> Kind:
        return replace(KINDS[self.kind], constants=self.constants)


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
        self._fields = {**KINDS["llamacpp"].constants, "cache_prompt": self._options.prompt_cache}
        self._tenant: str | None = None
        self._normalizes = False
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
            digest = asyncio.create_task(asyncio.to_thread(files.digest, self._files.model))
            self._normalizes = facts.normalizes
            options = self._to_remote(facts)
            self._setup = launch.to_setup(
                self._files, self._options, slots=self._slots, longest=facts.context_length, budget=read_budget(options)
            )
            server = self._server = ServerProcess(
                self._config.name,
                Launch(self._command),
                start_timeout_s=self._config.start_timeout_s,
                stop_grace_s=self._options.stop_grace_s,
            )
            remote = self._remote = RemoteEngine(self._config, options=options, address=server.address)
            await server.start(self._is_well, remote.forget_pictures)
            await remote.start()
            self._info = replace(await self._read_info(remote), weights_digest=await digest)
        except BaseException:
            await self.close()
            raise

    def _command(self, address: Address) -> list[str]:
        assert self._setup is not None
        assert address.socket is not None
        return launch.to_command(self._setup, address.socket, self._options.executable)

    def _to_remote(self, facts: files.Facts) -> _Options:
        return _Options(
            base_url="http://localhost/v1",  # behind the socket
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
        return info if takes_tools else replace(info, features=info.features - {"tools", "parallel_tool_calls"})

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        _check_schemas(request)
        async with self._asked() as remote:
            return await remote.count_tokens(self._normalised(request))

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        """As `Engine.generate`; raises `UpstreamFailed` where the server broke."""
        _check_schemas(request)
        asked = _with_logprobs(self._normalised(request))
        async with self._asked() as remote:
            self._meet(request.tenant)
            async with aclosing(remote.generate(asked)) as events:
                async for event in events:
                    if isinstance(event, Finish) and self._server is not None:
                        self._server.served()
                    yield _without_others(event) if request.sampling.logprobs == 0 else event

    def _normalised(self, request: EngineRequest) -> EngineRequest:
        """The texts in the form that the model's own tokenizer gives them."""
        if not self._normalizes:
            return request
        messages = tuple(replace(m, content=tuple(map(_in_normal_form, m.content))) for m in request.messages)
        prompt = request.prompt
        prompt = unicodedata.normalize("NFC", prompt) if isinstance(prompt, str) else prompt
        return replace(request, messages=messages, prompt=prompt)

    def _meet(self, tenant: str) -> None:
        """Prompts in slots are reused for as long as there is one tenant, whose they all are."""
        if self._tenant is None:
            self._tenant = tenant
        if tenant != self._tenant:
            self._fields["cache_prompt"] = False

    @asynccontextmanager
    async def _asked(self) -> AsyncIterator[RemoteEngine]:
        """Around whatever asks the server."""
        if self._closed:
            raise stopped()
        if self._server is None or self._remote is None or self._info is None:
            raise EngineUnavailable("The engine has not been started.")
        async with self._server.asked():
            yield self._remote

    async def close(self) -> None:
        self._closed = True
        if self._remote is not None:
            await self._remote.close()
        if self._server is not None:
            await self._server.close()


def _in_normal_form(part: Text | Image) -> Text | Image:
    return Text(unicodedata.normalize("NFC", part.text)) if isinstance(part, Text) else part


def _check_schemas(request: EngineRequest) -> None:
    schemas.check(request.response_format.schema, "response_format")
    for tool in request.tools:
        schemas.check(tool.parameters, "tools")


def _with_logprobs(request: EngineRequest) -> EngineRequest:
    """A token's log-probability is told only beside that of the likeliest."""
    if request.sampling.logprobs != 0:
        return request
    return replace(request, sampling=replace(request.sampling, logprobs=1))


def _without_others(event: Event) -> Event:
    if not isinstance(event, TextDelta):
        return event
    return replace(event, logprobs=tuple(replace(told, top=()) for told in event.logprobs))
