"""What is kept on the disk and worked on later: files, batches, analyses that nobody waits for.

Made with the application and started with it. Where the data directory cannot be used, the server serves all the same,
and what would have to be kept is refused until it can.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from sightline.config import Settings
from sightline.errors import FileTooLarge as KeptFileTooLarge
from sightline.errors import ImageFileNotFound, ImageFileTooLarge, ObjectNotFound, SightlineError
from sightline.jobs import Store
from sightline.jobs.backend import backend
from sightline.jobs.files import Files
from sightline.jobs.runner import Execute, Runner
from sightline.jobs.stages import Stages

log = logging.getLogger(__name__)

_AGAIN_S: Final = 2.0
"""After what keeps it could not be reached at the start."""


class Work:
    """Life: made -> `start` -> `close`. `files` and `store` may be used from then on."""

    def __init__(self, settings: Settings) -> None:
        """Touches no disk. Raises `InvalidRequest` where the settings ask for what is not installed."""
        temporary = Path(tempfile.gettempdir()) / f"sightline-{os.urandom(8).hex()}"
        self._directory = temporary if settings.data_dir is None else Path(settings.data_dir)
        self._settings = settings
        self._backend = backend(settings, self._directory)
        self.store: Store = self._backend.store
        self.files: Files = self._backend.files
        batches = settings.batches
        self.stages = Stages(self.store, self.files, max_lines=batches.max_lines, max_bytes=batches.max_bytes)
        self._runner: Runner | None = None
        self._starting: asyncio.Task[None] | None = None
        self._told = ""
        """Why it could not start, as the log has it."""

    async def start(self, execute: Execute) -> None:
        """`execute` answers what is worked on."""
        self._runner = Runner(
            self.store,
            self.files,
            self.stages,
            execute,
            at_once=self._settings.batches.max_concurrent,
            bell=self._backend.bell,
        )
        if not await self._is_started():
            self._starting = asyncio.create_task(self._start_later())

    async def close(self) -> None:
        """What is under way is done by another that has the same queue, or by the next."""
        if self._starting is not None:
            self._starting.cancel()
        if self._runner is not None:
            await self._runner.close()
        await self._backend.close()
        if self._settings.data_dir is None:
            await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    def wake(self) -> None:
        """There is something new to do."""
        if self._runner is not None:
            self._runner.wake()

    async def _is_started(self) -> bool:
        assert self._runner is not None
        try:
            await self._backend.start()
        except SightlineError as error:
            if error.message != self._told:  # and not every two seconds
                self._told = error.message
                log.error(
                    "files and batches cannot be kept in %s: %s Requests for them are refused until they can; all else "
                    "is served.",
                    self._backend.where,
                    error.message,
                )
            with suppress(SightlineError):
                await self._backend.close()
            return False
        if self._told:
            log.info("files and batches can be kept in %s now", self._backend.where)
        await self._runner.start()
        return True

    async def _start_later(self) -> None:
        while True:
            await asyncio.sleep(_AGAIN_S)
            if await self._is_started():
                return

    async def read_picture(self, file_id: str, tenant: str, max_bytes: int) -> bytes:
        """A file that a request names as a picture. Raises an `ImageError` where there is none or it is too large."""
        try:
            return await self.files.read(tenant, file_id, max_bytes)
        except ObjectNotFound:
            raise ImageFileNotFound(
                "there is no such file; upload the picture to /v1/files and name the id of the answer."
            ) from None
        except KeptFileTooLarge as error:
            raise ImageFileTooLarge(error.message) from None
