"""vLLM: `vllm serve` in an environment of its own, started and supervised by us; or one that runs already.

vLLM's pins clash with everybody's, so it is never imported here: the operator names the program or the Python of the
environment that it is installed in. What it leaves open by default is closed by flags that cannot be undone
(`SAFE_FLAGS`), and it listens on a Unix socket that only we can open.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from pathlib import Path
from typing import Any

import msgspec

from sightline.config import PEEK, ModelConfig
from sightline.engines import EngineInfo, EngineState
from sightline.engines.remote import RemoteEngine
from sightline.engines.remote.options import RemoteOptions, read_options, wrong
from sightline.engines.remote.upstream import Address
from sightline.engines.server_process import Launch, ServerProcess
from sightline.types import EmbeddingRequest, Embeddings, EngineRequest, Event, Finish, TokenCount

log = logging.getLogger(__name__)

_SPARE_REQUESTS = 16
_ATTACHED = "http://localhost/v1"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")

REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("host", "port", "uds"), "it listens where only this server reaches it"),
    **dict.fromkeys(("api_key", "ssl_keyfile", "ssl_certfile"), "it listens on a socket that nobody else can open"),
    **dict.fromkeys(("model", "served_model_name"), "use the model's source and name"),
    **dict.fromkeys(
        ("allowed_media_domains", "allowed_local_media_path"),
        "it must fetch and open nothing: pictures are fetched here, under the server's own policy",
    ),
    **dict.fromkeys(
        ("enable_log_requests", "enable_log_outputs", "log_config_file"), "what people write and read is not logged"
    ),
    **dict.fromkeys(("trust_request_chat_template", "enable_prompt_embeds", "enable_mm_embeds"),
                    "requests may not bring templates or tensors"),
    "enable_request_id_headers": "requests are followed through both logs by it",
    "enable_prompt_tokens_details": "usage is told with it",
    "shutdown_timeout": "answers under way are finished when it is stopped",
    "config": "a file could undo any safe flag; give its values in engine_kwargs",
    "middleware": "it would run inside every request",
    "tool_server": "tools are run by clients, never by a server",
}  # fmt: skip
"""Options of `vllm serve` that are ours, and why."""


class VllmOptions(RemoteOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelConfig.options` of the engine `vllm`: those of `remote`, and how to start it."""

    base_url: str = _ATTACHED
    """Of one that runs already; then nothing is started."""
    kind: str = "vllm"
    executable: str | None = None
    """The program `vllm` of the environment."""
    python: str | None = None
    """Or the environment's Python; the model's own `python` says the same."""
    engine_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)
    """Any option of `vllm serve`, in snake case: `dtype`, `max_model_len`, `gpu_memory_utilization`, `max_num_seqs`,
    `tensor_parallel_size`, `limit_mm_per_prompt`, `trust_remote_code` ..."""
    environment: dict[str, str] = msgspec.field(default_factory=dict)
    """Variables that it gets: `VLLM_CPU_KVCACHE_SPACE` ..."""
    pass_environment: tuple[str, ...] = ()
    """Names of variables of this server that it gets too: `HF_TOKEN` ..."""
    stop_grace_s: float = 10.0

    @property
    def starts(self) -> bool:
        return self.executable is not None or self.python is not None


class VllmEngine:
    """An `Engine`, and `Supervised` when it starts its server itself."""

    def __init__(self, config: ModelConfig) -> None:
        """Raises `InvalidRequest` for options that cannot be meant, the refused ones of vLLM among them."""
        options = _with_python(config, read_options(config, VllmOptions))
        _check(options)
        self._config = config
        self._server: ServerProcess | None = None
        address = None
        if options.starts:
            limit = picture_limit(options)["image"]
            served_as = options.model or config.name
            options = msgspec.structs.replace(options, model=served_as, checkpoint=_directory(config), max_images=limit)
            launch = Launch(
                lambda address: to_command(config, options, address),
                environment=to_environment(config, options),
                pass_on=options.pass_environment,
            )
            self._server = ServerProcess(
                config.name, launch, start_timeout_s=config.start_timeout_s, stop_grace_s=options.stop_grace_s
            )
            address = self._server.address
        self._remote = RemoteEngine(config, options=options, address=address)

    @property
    def info(self) -> EngineInfo:
        return self._remote.info

    @property
    def state(self) -> EngineState:
        return self._server.state if self._server is not None else self._remote.state

    @property
    def restarts(self) -> int:
        return self._server.restarts if self._server is not None else 0

    @property
    def pid(self) -> int | None:
        """Of the process group of the server that we started."""
        return self._server.pid if self._server is not None else None

    async def start(self) -> None:
        try:
            if self._server is not None:
                await self._server.start(self._is_well, self._remote.forget_pictures)
            await self._remote.start()
            self._warn_of_no_budget()
        except BaseException:
            await self.close()
            raise

    def _warn_of_no_budget(self) -> None:
        """A model that vLLM looks up by itself may see; how, its files would tell us."""
        if self._server is not None and self.info.vision is None and _directory(self._config) is None:
            log.warning(
                "model %s: how it sees is not known here, so requests with pictures are refused: name the directory "
                "of its files as source (sightline pull makes one), or what pictures cost as the option budget.",
                self._config.name,
            )

    async def _is_well(self) -> bool:
        return await self._remote.look() is not None

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        async with self._up():
            return await self._remote.count_tokens(request)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        async with self._up(), aclosing(self._remote.generate(request)) as events:
            async for event in events:
                if isinstance(event, Finish) and self._server is not None:
                    self._server.served()
                yield event

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Of a model that vLLM serves for that (option `work`)."""
        async with self._up():
            return await self._remote.embed(request)

    async def close(self) -> None:
        await self._remote.close()
        if self._server is not None:
            await self._server.close()

    def _up(self) -> AbstractAsyncContextManager[None]:
        """Around whatever asks a server of ours."""
        return nullcontext() if self._server is None else self._server.asked()


# --- the command line ------------------------------------------------------------------------------------------------


def to_command(config: ModelConfig, options: VllmOptions, address: Address) -> list[str]:
    """`vllm serve` with what the operator says and the safe flags, listening at `address`."""
    program = [options.executable] if options.executable else [options.python or "", "-m", "vllm.entrypoints.cli.main"]
    given = {name.replace("-", "_"): value for name, value in options.engine_kwargs.items()}
    flags = {**safe_flags(config, options), **given}
    flags["limit_mm_per_prompt"] = picture_limit(options)
    flags["served_model_name"] = options.model or config.name
    flags["uds"] = address.socket
    return [*program, "serve", source(config), *(word for name, value in flags.items() for word in _flag(name, value))]


def source(config: ModelConfig) -> str:
    """A directory of ours, or what vLLM is to look up by itself."""
    return str(config.path) if config.source == PEEK else config.source


def safe_flags(config: ModelConfig, options: VllmOptions) -> dict[str, Any]:
    """Against vLLM's defaults: any URL fetched, 999 pictures a prompt, no bound on its queue, answers cut off."""
    return {
        "allowed_media_domains": ["none.invalid"],  # RFC 2606: no such host will ever be
        "max_num_queued_reqs": config.max_concurrent + _SPARE_REQUESTS,  # those that run are counted too
        "shutdown_timeout": max(1, int(options.stop_grace_s) - 2),
        "enable_request_id_headers": True,
        "enable_prompt_tokens_details": True,
        "disable_uvicorn_access_log": True,
        "disable_fastapi_docs": True,
    }


def to_environment(config: ModelConfig, options: VllmOptions) -> dict[str, str]:
    """Redirects and telemetry off; a model in a directory needs no network at all."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"} if _directory(config) else {}
    return {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
        **offline,
        **options.environment,
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    }


def _directory(config: ModelConfig) -> str | None:
    """Of the model's files; None: vLLM finds them by itself."""
    return path if Path(path := source(config)).is_dir() else None


def picture_limit(options: VllmOptions) -> dict[str, int]:
    given = options.engine_kwargs.get("limit_mm_per_prompt") or {}
    images = given.get("image", options.max_images or _DEFAULT_PICTURES)
    return {"image": images, "video": 0, "audio": 0}


_DEFAULT_PICTURES = 64
"""As many as a request may have (`ImageLimits.max_images`)."""


def _flag(name: str, value: Any) -> Sequence[str]:
    flag = f"--{name.replace('_', '-')}"
    match value:
        case None:
            return []
        case True:
            return [flag]
        case False:
            return [f"--no-{name.replace('_', '-')}"]
        case Mapping():
            return [f"{flag}={json.dumps(value)}"]
        case list() | tuple():
            return [flag, *map(str, value)]
        case _:
            return [f"{flag}={value}"]


def _with_python(config: ModelConfig, options: VllmOptions) -> VllmOptions:
    if config.python is None:
        return options
    if options.python is not None:
        raise wrong("python is given twice, as an option and beside the options; give one.")
    return msgspec.structs.replace(options, python=config.python)


def _check(options: VllmOptions) -> None:
    if options.kind != "vllm":
        raise wrong("the engine vllm speaks to vLLM; for other servers use the engine remote.")
    if options.executable is not None and options.python is not None:
        raise wrong("executable and python name the same environment twice; give one.")
    if options.starts and options.base_url != _ATTACHED:
        raise wrong("base_url is of a vLLM that runs already, executable and python of one to be started; give one.")
    if not options.starts and options.base_url == _ATTACHED:
        raise wrong(
            "name the program of an environment that has vLLM (executable: /opt/vllm/bin/vllm), or the address of one "
            "that runs (base_url: http://localhost:8000/v1)."
        )
    if not options.starts and options.engine_kwargs:
        raise wrong("engine_kwargs are for a vLLM that is started here, not for one that runs already.")
    for name, value in options.engine_kwargs.items():
        _check_flag(name.replace("-", "_"), value)
    for name in (*options.environment, *options.pass_environment):
        if not _VARIABLE.fullmatch(name):
            raise wrong(f"{name!r} is no name of an environment variable.")


def _check_flag(name: str, value: Any) -> None:
    name = name.removeprefix("no_")
    if not _NAME.fullmatch(name):
        raise wrong(f"engine_kwargs: {name!r} is no option of `vllm serve`; write it as max_model_len.")
    if name in REFUSED:
        raise wrong(f"engine_kwargs: {name} cannot be set: {REFUSED[name]}.")
    if name == "max_num_queued_reqs" and not (isinstance(value, int) and value > 0):
        raise wrong("engine_kwargs: max_num_queued_reqs must be above 0: a queue without a bound only grows late.")
    if name == "limit_mm_per_prompt":
        images = (
            value.get("image", 1) if isinstance(value, dict) and set(value) <= {"image", "video", "audio"} else None
        )
        others = isinstance(value, dict) and any(value.get(kind) for kind in ("video", "audio"))
        if not isinstance(images, int) or not 0 <= images <= 999 or others:
            raise wrong('engine_kwargs: limit_mm_per_prompt must be as {"image": 8}; nothing but pictures is sent.')
    if isinstance(value, str) and "\0" in value:
        raise wrong(f"engine_kwargs: {name} has a value that no command line can hold.")
