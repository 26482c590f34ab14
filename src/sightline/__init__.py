"""Sightline serves vision-language models: one command, any engine, behind the APIs programs already speak."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightline.batch import Batch as Batch
    from sightline.client import Answer as Answer
    from sightline.client import ApiError as ApiError
    from sightline.client import AsyncClient as AsyncClient
    from sightline.client import Client as Client
    from sightline.client import ClientError as ClientError

__version__ = "0.1.0"

_FROM = {
    "Answer": "sightline.client",
    "ApiError": "sightline.client",
    "AsyncClient": "sightline.client",
    "Batch": "sightline.batch",
    "Client": "sightline.client",
    "ClientError": "sightline.client",
}
"""What programs use, and where it is: imported when it is asked for, so that `import sightline` costs nothing."""


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_FROM[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_FROM})
