"""Settings and model configurations, a file for each subject.

All are frozen values, made once at start by the command line and passed down; nothing below asks the environment.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from sightline.config.access import AccessPolicy, KeyConfig, KeyLimits
from sightline.config.environment import environment, state_dir, variable
from sightline.config.limits import (
    MIB,
    AudioLimits,
    BatchLimits,
    FileLimits,
    ImageLimits,
    OptimizedPictures,
    ResponseLimits,
)
from sightline.config.model import PEEK, ModelConfig, PictureSize
from sightline.config.network import HOST_ENTRY, AdminEndpoint, CorsPolicy, FetchPolicy, HttpLimits, Tls, is_loopback
from sightline.config.tracing import Tracing
from sightline.errors import InvalidRequest

__all__ = [
    "DEFAULT_URL",
    "HOST_ENTRY",
    "MIB",
    "PEEK",
    "AccessPolicy",
    "AdminEndpoint",
    "AudioLimits",
    "BatchLimits",
    "CorsPolicy",
    "FetchPolicy",
    "FileLimits",
    "HttpLimits",
    "ImageLimits",
    "KeyConfig",
    "KeyLimits",
    "ModelConfig",
    "OptimizedPictures",
    "PictureSize",
    "ResponseLimits",
    "Settings",
    "Tls",
    "Tracing",
    "data_dir_of",
    "environment",
    "is_loopback",
    "state_dir",
    "variable",
]

DEFAULT_URL = "http://127.0.0.1:8000/v1"
"""Where a server is that was told nothing else."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8000
    """0: any free one."""
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    """Processes that answer HTTP. They share models, limits, files and metrics; one more process, the core, has those.
    1: one process does all."""
    models: tuple[ModelConfig, ...] = (ModelConfig(name=PEEK),)
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    """Values of the Host header that are answered (ports are ignored); `*` for any."""
    request_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    """The deadline of a request that names none."""
    drain_s: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    """For how long a server that is told to stop (SIGTERM, Ctrl-C) goes on with the answers that it has begun."""
    images: ImageLimits = ImageLimits()
    picture_size: PictureSize = PictureSize()
    """For every model; a model's own narrows it further."""
    audio: AudioLimits = AudioLimits()
    fetch: FetchPolicy = FetchPolicy()
    http: HttpLimits = HttpLimits()
    tls: Tls | None = None
    responses: ResponseLimits = ResponseLimits()
    cors: CorsPolicy = CorsPolicy()
    access: AccessPolicy = AccessPolicy()
    admin: AdminEndpoint | None = None
    """None: `/metrics` and `/admin` are on the one listener, for admin keys once there are keys."""
    optimized: OptimizedPictures = OptimizedPictures()
    data_dir: str | None = None
    """Where files, batches and their answers are kept. Servers on one machine may share it if they serve the same
    models. None: `sightline serve` takes one below the user's state directory, by its port; elsewhere it is a
    temporary one."""
    files: FileLimits = FileLimits()
    jobs: Annotated[str, msgspec.Meta(extra_json_schema={"pattern": "^(redis|rediss|unix)://"})] | None = None
    """Where batches and analyses wait: `redis://HOST:PORT/DB` (with TLS `rediss://`), which servers and workers on
    several machines share; with a password, `redis://:${NAME}@HOST:PORT/DB`. None: in the data directory."""
    batches: BatchLimits = BatchLimits()
    tracing: Tracing = Tracing()
    ui: bool = False
    """Whether there is a page at `/ui` to chat with the models. It needs `pip install 'sightline[ui]'`."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "human"] | None = None
    """None: for people where the log goes to a terminal, else a line of JSON for each record."""

    def __post_init__(self) -> None:
        if self.jobs is not None and not _is_queue(self.jobs):
            raise InvalidRequest(
                "jobs must be redis://HOST:PORT/DB, or rediss:// with TLS; special characters of a password are "
                "written as %XX.",
                param="jobs",
            )


def _is_queue(url: str) -> bool:
    """Whether redis-py takes it, and takes all of it: of a database that is no number it would make database 0."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "unix":
            return url.startswith("unix://") and len(parts.path) > 1
        is_there = parts.scheme in ("redis", "rediss") and bool(parts.hostname) and parts.port != 0
        return is_there and re.fullmatch(r"/?|/\d+", parts.path) is not None
    except ValueError:  # a port that is no number
        return False


def data_dir_of(settings: Settings) -> Path:
    """Where a process with these settings keeps what outlives it: those that share a queue on one machine share it."""
    if settings.data_dir is not None:
        return Path(settings.data_dir)
    if settings.jobs is not None:
        return state_dir() / f"queue-{hashlib.sha256(settings.jobs.encode()).hexdigest()[:16]}"
    return state_dir() / f"port-{settings.port}"
