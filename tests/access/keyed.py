"""A server with keys, for tests: without a socket, in one process."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.types import ASGIApp

from sightline.access.keyfile import KeyFile
from sightline.access.keys import Key, new_id, new_secret, to_digest
from sightline.api.app import create_app
from sightline.api.lifespan import running
from sightline.config import ImageLimits, KeyLimits, ModelConfig, Settings
from sightline.service import Service

MODELS = (
    ModelConfig(name="m", engine="fake", aliases=("m-alias",), fallbacks=("other",)),
    ModelConfig(name="other", engine="fake", aliases=("o-alias",)),
)


def add_key(file: KeyFile, name: str = "me", **more: Any) -> str:
    """The secret of a new key. Limits are given by their own names."""
    secret, key_id = new_secret(), new_id()
    limits = KeyLimits(**{name: more.pop(name) for name in KeyLimits.__struct_fields__ if name in more})
    values: dict[str, Any] = {"tenant": key_id, "created_at": int(time.time()), **more}
    file.create(Key(id=key_id, name=name, digest=to_digest(secret.encode()), limits=limits, **values))
    return secret


def picture() -> str:
    """A red one, in base64."""
    file = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


@dataclass
class Keyed:
    """Keys are added before `app` is asked for."""

    directory: Path
    models: tuple[ModelConfig, ...] = MODELS
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.file = KeyFile(self.directory / "keys.db")

    def key(self, name: str = "me", **more: Any) -> str:
        return add_key(self.file, name, **more)

    def make(self) -> tuple[Service, ASGIApp]:
        images = ImageLimits(decoders=1)  # each is a process to start
        settings = Settings(models=self.models, data_dir=str(self.directory), images=images, **self.settings)
        service = Service(settings)
        return service, create_app(service, settings, wait=True)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ASGIApp]:
        """With its lifespan, as a server runs it."""
        _, app = self.make()
        async with running(app):
            yield app
