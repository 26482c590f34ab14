"""The steps of a batch as a whole: its input becomes items, its results become files. Each may be done twice, by two
servers or after a crash, and comes to the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

from sightline.errors import CapacityError, ObjectNotFound
from sightline.jobs import Batch, Clock, LineError, Store
from sightline.jobs.files import Files, before
from sightline.jobs.lines import Reading, split_lines, to_result_line

_ITEMS_AT_ONCE: Final = 500
_BYTES_AT_ONCE: Final = 4 * 1024 * 1024


class Stages:
    def __init__(
        self, store: Store, files: Files, *, max_lines: int, max_bytes: int, clock: Clock | None = None
    ) -> None:
        self._store = store
        self._files = files
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._clock = clock or Clock()

    async def advance(self, batch: Batch) -> None:
        """The next step of one that is due (`Store.due`)."""
        if batch.ending is None:
            await self._validate(batch)
        else:
            await self._write(batch)

    async def _validate(self, batch: Batch) -> None:
        reading = Reading(batch.endpoint, self._max_lines)
        try:
            file = await self._files.get(batch.tenant, batch.input_file_id or "")
            if file.bytes > self._max_bytes:
                told = f"The input file has {file.bytes} bytes; a batch takes at most {self._max_bytes}."
                reading.errors.append(LineError("file_too_large", told))
            else:
                async for lines in split_lines(self._files.content(file)):
                    await asyncio.to_thread(_feed, reading, lines)
                    if not reading.errors:
                        await self._add(batch, reading)
                reading.end()
        except ObjectNotFound:
            told = "The input file was deleted or has expired. Upload it again and make another batch."
            reading.errors.append(LineError("file_not_found", told, param="input_file_id"))
        except CapacityError:  # its bytes may be there again later
            if self._clock.wall() < batch.expires_at:
                raise
            told = "The input file could not be read until the batch's time was over. Upload it again."
            reading.errors.append(LineError("batch_expired", told, param="input_file_id"))
        if reading.errors:
            await self._store.fail(batch.id, reading.errors)
        else:
            await self._store.begin(batch.id, model=reading.model)

    async def _add(self, batch: Batch, reading: Reading) -> None:
        items = reading.take()
        for start in range(0, len(items), _ITEMS_AT_ONCE):
            await self._store.add_items(batch.id, items[start : start + _ITEMS_AT_ONCE])

    async def _write(self, batch: Batch) -> None:
        has_output = await self._write_file(batch, batch.output_file_id, "output", lambda succeeded: succeeded)
        has_errors = await self._write_file(batch, batch.error_file_id, "errors", lambda succeeded: not succeeded)
        await self._store.finish(batch.id, has_output=has_output, has_errors=has_errors)

    async def _write_file(self, batch: Batch, file_id: str | None, name: str, wanted: Callable[[bool], bool]) -> bool:
        """Whether there is one: an empty one is not made."""
        lines = self.lines(batch.id, wanted)
        try:
            first = await anext(lines, None)
            if first is None:
                return False
            await self._files.create(
                batch.tenant,
                f"{batch.id}_{name}.jsonl",
                "batch_output",
                before(first, lines),
                kept_s=batch.output_kept_s,
                file_id=file_id,
                limited=False,
            )
        finally:
            await lines.aclose()  # type: ignore[attr-defined]
        return True

    async def lines(self, batch_id: str, wanted: Callable[[bool], bool] = lambda _: True) -> AsyncIterator[bytes]:
        """Of what is done so far, in order, some at once. `wanted`: from whether an item has succeeded."""
        held = bytearray()
        async for item, result in self._store.results(batch_id):
            if wanted(result.succeeded):
                held += to_result_line(item, result)
            if len(held) >= _BYTES_AT_ONCE:
                yield bytes(held)
                held.clear()
        if held:
            yield bytes(held)


def _feed(reading: Reading, lines: list[bytes]) -> None:
    for line in lines:
        reading.feed(line)
