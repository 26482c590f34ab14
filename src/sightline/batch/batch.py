"""Many tasks: how many at once, what is tried again, in which order rows come out."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import replace
from typing import Any

from sightline.batch.ask import Answered, Asker, Failed, LocalAsker, Question, RemoteAsker
from sightline.batch.tasks import Row, RowError, Task, to_name, to_tasks
from sightline.client.pictures import Picture
from sightline.config import PEEK, ModelConfig, Settings

_AHEAD = 8
"""Rows for each task at once that may wait for an earlier one that takes long: what bounds memory."""
_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 30.0


class Batch:
    """One question about many pictures. A context manager: the model is loaded, or the server found, while inside.

    async with Batch("What is this?", model="peek") as batch:
        async for row in batch.run(paths):
            ...
    """

    def __init__(
        self,
        prompt: str | None = None,
        *,
        model: str | ModelConfig | None = None,
        engine: str = "openvino",
        url: str | None = None,
        api_key: str | None = None,
        settings: Settings | None = None,
        system: str | None = None,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        schema: dict[str, Any] | None = None,
        detail: str | None = None,
        concurrency: int | None = None,
        retries: int = 3,
    ) -> None:
        """`url`: of a server that is asked; without it the model is loaded into this process: `model` is a source (a
        directory, `peek`) that `engine` takes, a `ModelConfig`, or a name in `settings`. `concurrency`: tasks at
        once (None: what keeps the engine busy). `retries`: of a task whose failure may pass. The other arguments are
        those of a chat completion; greedy, unless a `temperature` is given."""
        self._prompt = prompt
        self._question = Question(system, max_tokens, temperature, seed, schema, detail)
        self._retries = retries
        self._asker: Asker
        if url is not None:
            name = model.name if isinstance(model, ModelConfig) else model
            self._asker = RemoteAsker(url, api_key, name)
        else:
            settings, name = _to_settings(model, engine, settings)
            self._asker = LocalAsker(settings, name)
        self._concurrency = concurrency or self._asker.concurrency

    async def __aenter__(self) -> Batch:
        await self._asker.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._asker.close()

    async def run(self, items: Iterable[Picture | Sequence[Picture] | Task]) -> AsyncGenerator[Row, None]:
        """A row for each item, in their order: an item is a picture, several that belong together, or a `Task`.

        `items` is read as it goes. A task that fails gives a row with its error and stops nobody.
        Raises what `items` raises. Closing it ends what is under way.
        """
        tasks = to_tasks(items, self._prompt)
        under_way: deque[asyncio.Task[Row]] = deque()
        running = asyncio.Semaphore(self._concurrency)
        try:
            while True:
                while len(under_way) < self._concurrency * _AHEAD and not running.locked():
                    task = await asyncio.to_thread(next, tasks, None)
                    if task is None:
                        break
                    await running.acquire()
                    under_way.append(asyncio.create_task(self._row(task, running)))
                if not under_way:
                    return
                first = under_way[0]
                if not first.done():
                    # Whichever comes first: the row that is due, or room for the next task.
                    unfinished = [row for row in under_way if not row.done()]
                    await asyncio.wait(unfinished, return_when=asyncio.FIRST_COMPLETED)
                while under_way and under_way[0].done():
                    yield under_way.popleft().result()
        finally:
            for task_ in under_way:
                task_.cancel()
            if under_way:
                await asyncio.wait(under_way)

    async def _row(self, task: Task, running: asyncio.Semaphore) -> Row:
        """Holds its place in `running`, which was taken for it, until it is answered."""
        try:
            return await self.answer(task)
        finally:
            running.release()

    async def answer(self, task: Task) -> Row:
        """What becomes of one task, tried again where that may help. How many at once is for who calls."""
        began = time.perf_counter()
        row = Row(task.index, task.id, tuple(to_name(p) for p in task.pictures), task.prompt, extra=task.extra)
        try:
            answered = await self._ask(task)
        except Failed as failed:
            return replace(row, error=failed.error, seconds=_since(began))
        data, error = self._to_data(answered)
        return replace(
            row,
            answer=answered.text,
            error=error,
            data=data,
            model=answered.model,
            finish_reason=answered.finish_reason,
            prompt_tokens=answered.prompt_tokens,
            completion_tokens=answered.completion_tokens,
            image_tokens=answered.image_tokens,
            seconds=_since(began),
        )

    async def _ask(self, task: Task) -> Answered:
        for attempt in range(self._retries + 1):
            try:
                return await self._asker.ask(task, self._question)
            except Failed as failed:
                if not failed.retryable or attempt == self._retries:
                    raise
                backoff_s = min(_MAX_BACKOFF_S, _BACKOFF_S * 2**attempt) * random.uniform(0.75, 1.25)
                await asyncio.sleep(max(backoff_s, failed.retry_after_s or 0.0))
        raise AssertionError("the last attempt returns or raises")

    def _to_data(self, answered: Answered) -> tuple[Any, RowError | None]:
        if self._question.schema is None:
            return None, None
        try:
            return json.loads(answered.text), None
        except ValueError:
            cut = " It was cut off at max_tokens." if answered.finish_reason == "length" else ""
            return None, RowError("invalid_json", f"The answer is not JSON.{cut}")


def _to_settings(model: str | ModelConfig | None, engine: str, settings: Settings | None) -> tuple[Settings, str]:
    if settings is not None:
        return settings, model if isinstance(model, str) else settings.models[0].name
    if not isinstance(model, ModelConfig):
        source = model or PEEK
        model = ModelConfig(name=source.rstrip("/").rpartition("/")[2], engine=engine, source=source)
    return Settings(models=(model,)), model.name


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 6)
