"""vLLM as `ray.serve.llm` runs it, behind our ingress: Ray's own `LLMServer`, in the replica.

Beside our engine `vllm`, which is a program on one machine, it has what Ray has: workers on several machines, placed by
bundles; weights from clouds; adapters. Ray builds vLLM's own application for what it calls direct streaming; that
listens here on a Unix socket that nobody else can open, and our engine `remote` speaks to it, so that everything but
the life of vLLM is as with the engine `vllm`.

Source: Ray 2.60, `ray.serve.llm.deployment.LLMServer`: `sync_init`, `start`, `check_health`, `get_deployment_options`,
`__serve_build_asgi_app__`. It imports vLLM (Ray 2.60: 0.29), so nothing of it is imported before it is asked for.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from sightline.cluster.llm_config import RAYS_ENGINE
from sightline.cluster.replica import EngineReplica
from sightline.config import ModelConfig
from sightline.engines import Engine, EngineInfo
from sightline.engines.remote import RemoteEngine
from sightline.engines.remote.options import RemoteOptions, read_options
from sightline.engines.remote.upstream import Address
from sightline.errors import EngineUnavailable
from sightline.types import EmbeddingRequest, Embeddings, EngineRequest, Event, TokenCount

_PLACED = ("placement_group_bundles", "placement_group_strategy", "ray_actor_options")
_SAFE = {"allowed_media_domains": ["none.invalid"], "enable_prompt_tokens_details": True}
"""Of vLLM: pictures are sent to it, never named (RFC 2606: no such host will ever be); usage is told."""


def placement(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the deployment that Ray makes of an `LLMConfig`: where vLLM's workers run, and what the replica needs
    beside them. Raises `EngineUnavailable` where there is no vLLM beside Ray."""
    server, config = _of_ray(given)
    options = server.get_deployment_options(config)
    return {name: options[name] for name in _PLACED if name in options}


class RayLlmReplica(EngineReplica):
    """An `EngineReplica` whose engine is Ray's."""

    async def __init__(self, values: Mapping[str, Any], name: str, given: Mapping[str, Any]) -> None:  # type: ignore[misc]  # Ray awaits it
        """`given`: fields of an `LLMConfig`."""
        self._given = given
        await super().__init__(values, name)

    def _make(self, config: ModelConfig) -> Engine:
        self._llm = RayLlmEngine(config, self._given)
        return self._llm

    async def check_health(self) -> None:
        """As vLLM is, by Ray."""
        self._started()
        await self._llm.check_health()


class RayLlmEngine:
    """An `Engine`: `LLMServer`, its application on a socket, and who speaks to that."""

    def __init__(self, config: ModelConfig, given: Mapping[str, Any]) -> None:
        self._given = given
        self._directory = Path(tempfile.mkdtemp(prefix="sightline-"))
        self._socket = str(self._directory / "vllm")
        where = {"checkpoint": config.source} if Path(config.source).is_dir() else {}
        ours = {"base_url": "http://localhost/v1", "kind": "vllm", "model": config.name}
        limit = {"max_images": config.limit_mm_per_prompt.get("image")}
        options = read_options(
            msgspec.structs.replace(config, options={**limit, **where, **config.options, **ours}), RemoteOptions
        )
        self._remote = RemoteEngine(config, options=options, address=Address(options.base_url, self._socket))
        self._server: Any = None
        self._site: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def info(self) -> EngineInfo:
        return self._remote.info

    async def start(self) -> None:
        """Raises as `Engine.start`; what keeps vLLM from starting stands in the replica's log."""
        try:
            server, config = _of_ray(self._given)
            self._server = server.sync_init(config)
            await self._server.start()
            app = await self._server.__serve_build_asgi_app__()
            self._site = uvicorn.Server(uvicorn.Config(app, uds=self._socket, log_config=None, access_log=False))
            self._serving = asyncio.create_task(self._site.serve())
            await self._remote.start()
        except BaseException:
            await self.close()
            raise

    async def check_health(self) -> None:
        if self._serving is None or self._serving.done():
            raise EngineUnavailable("vLLM's application has ended.")
        await self._server.check_health()

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        return await self._remote.count_tokens(request)

    def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        return self._remote.generate(request)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        return await self._remote.embed(request)

    async def close(self) -> None:
        await self._remote.close()
        if self._site is not None and self._serving is not None:
            self._site.should_exit = True
            with suppress(Exception):
                await self._serving
        if self._server is not None:
            await self._server.__del__()  # `LLMServer`'s way to end its engine; it may be called twice
        shutil.rmtree(self._directory, ignore_errors=True)


def _of_ray(given: Mapping[str, Any]) -> tuple[Any, Any]:
    """Ray's class of servers, and its configuration of one. Raises `EngineUnavailable`."""
    try:
        from ray.serve.llm import LLMConfig  # type: ignore[import-not-found, unused-ignore]
        from ray.serve.llm.deployment import LLMServer  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise EngineUnavailable(
            f"`engine: {RAYS_ENGINE}` needs vLLM beside Ray, on every machine: pip install 'ray[serve,llm]'. ({error})"
        ) from None
    own = {"engine_kwargs": {**given.get("engine_kwargs", {}), **_SAFE}}
    return given.get("server_cls") or LLMServer, LLMConfig(**{**given, **own})
