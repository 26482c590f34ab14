"""A batch on the machines of a Ray cluster, as a pipeline of Ray Data. The only file here that imports Ray.

    tasks ──> pictures read ──> questions asked ──> rows, in the order of the tasks
    (driver)  (its machine)     (an engine in each actor, on any machine)

Whoever runs it, the driver, reads the input and writes the journal, so a run that is cut off goes on as on one machine.
Pictures are read on the driver's machine and go through Ray's object store: no other machine needs to have them. What
a lost actor or machine had under way is asked again by another; a row leaves the pipeline once, whatever happened.

Between processes go Arrow tables of texts and bytes: nothing of ours is pickled but the class of the actors, by name.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import pyarrow as pa  # type: ignore[import-not-found, unused-ignore]
import ray  # type: ignore[import-not-found, unused-ignore]
import ray.data  # type: ignore[import-not-found, unused-ignore]
from ray.exceptions import RayError  # type: ignore[import-not-found, unused-ignore]

from sightline import __version__
from sightline.batch.batch import Batch
from sightline.batch.tasks import Row, RowError, Task
from sightline.client import ClientError
from sightline.configfile import to_settings
from sightline.errors import SightlineError

T = TypeVar("T")

_MOST_CALLS: Final = 20_000
"""Of actors in a run: each costs Ray's scheduler milliseconds, so that a long input has more rows in a call."""
_CALLS: Final = 6
"""At once in an actor: while one waits for the slowest of its rows, the others keep the engine busy."""
_WAITING: Final = 2
"""Calls that wait beside those at an actor, their pictures read."""
_AHEAD: Final = 4
"""Calls whose rows may wait for whoever writes them."""
_READERS: Final = 4
"""Of pictures, at once."""
_LOST_STARTS: Final = 3
"""Actors in a row that may die while they load their model, as when their machine dies."""
_LINKS: Final = ("http:", "https:", "data:")

_TASKS = pa.schema([("task", pa.string())])
_READ = pa.schema([("task", pa.string()), ("contents", pa.list_(pa.large_binary())), ("unreadable", pa.string())])
_ROWS = pa.schema([("row", pa.string())])


@dataclass(frozen=True, slots=True)
class Replicas:
    """How many engines, and what Ray keeps free for each."""

    least: int | None = None
    """None: one for each machine, or, if they need accelerators, as many as the cluster has these for."""
    most: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of an actor: `num_cpus`, `num_gpus`, `accelerator_type`, `resources`, `runtime_env`."""


class RayBatch:
    """`Batch` on a cluster. A context manager: connected to the cluster, or to a Ray started for it, while inside."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        model: str,
        *,
        total: int,
        per_replica: int,
        replicas: Replicas | None = None,
        address: str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """`settings`: what a sightline.yaml holds; each machine fills in `${NAME}` itself. `total`: of tasks, about.
        `per_replica`: tasks at once that keep an engine busy. `address`: as `ray.init` takes it; None: RAY_ADDRESS, the
        Ray of this machine, or one that is started for the run. `arguments`: of `Batch`, how tasks are asked.
        Not one of Ray Client (`ray://`), whose driver is on no machine of the cluster.
        """
        self._asker = {
            "settings": dict(settings),
            "model": model,
            "arguments": {**(arguments or {}), "concurrency": per_replica},
            "version": __version__,
        }
        self._rows_a_call = max(-(-per_replica // 4), -(-total // _MOST_CALLS))
        self._replicas = replicas or Replicas()
        self._address = address

    async def __aenter__(self) -> RayBatch:
        """Raises `ClientError` where no Ray can be reached."""
        await asyncio.to_thread(self._connect)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(ray.shutdown)

    def _connect(self) -> None:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            ray.init(self._address, include_dashboard=False, **quiet)
        except (ConnectionError, RayError, RuntimeError, ValueError) as error:
            where = self._address or "the address in RAY_ADDRESS, or here"
            raise ClientError(f"No Ray can be reached at {where}: {error}") from None
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what ends the run is told once, by us
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # ours counts what is in the journal
        context.execution_options.preserve_order = True
        context.max_consecutive_actor_init_deaths = _LOST_STARTS

    async def run(self, tasks: Iterable[Task]) -> AsyncGenerator[Row, None]:
        """A row for each task, in their order. Raises what `tasks` raises, and `ClientError` when the cluster cannot do
        it at all: a model that does not load, machines without Sightline. Closing it ends what is under way."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[list[Row] | Exception | None] = asyncio.Queue()
        room, ended = threading.Semaphore(_AHEAD), threading.Event()

        def pump() -> None:
            told: Exception | None = None
            try:
                with closing(self._rows(iter(tasks))) as rows:
                    for piece in rows:
                        room.acquire()
                        if ended.is_set():
                            return
                        loop.call_soon_threadsafe(pieces.put_nowait, piece)
            except Exception as error:
                told = error
            with suppress(RuntimeError):  # the loop has ended, and nobody asks
                loop.call_soon_threadsafe(pieces.put_nowait, told)

        # A thread that nobody waits for: Ray Data's iterator can only be left when it gives something.
        threading.Thread(target=pump, daemon=True).start()
        try:
            while (piece := await pieces.get()) is not None:
                if isinstance(piece, RayError):
                    raise ClientError(_told(piece)) from piece
                if isinstance(piece, Exception):
                    raise piece
                room.release()
                for row in piece:
                    yield row
        finally:
            ended.set()
            room.release()

    def _rows(self, tasks: Iterator[Task]) -> Generator[list[Row], None, None]:
        """Of each call of an actor."""
        blocks = [ray.put(block) for block in _to_blocks(tasks, self._rows_a_call)]
        if not blocks:
            return
        options = _with_defaults(self._replicas.options)
        most = min(self._replicas.most or _room(options), len(blocks))
        asked = (
            ray.data.from_arrow_refs(blocks)
            .map_batches(
                _read_pictures,
                batch_size=None,
                batch_format="pyarrow",
                fn_kwargs={"directory": str(Path.cwd())},
                num_cpus=0,
                concurrency=_READERS,
                label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
            )
            .map_batches(
                _Asker,
                fn_constructor_kwargs=self._asker,
                batch_size=None,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(
                    min_size=min(self._replicas.least or most, most),
                    max_size=most,
                    max_concurrent_calls_per_actor=_CALLS,
                    max_tasks_in_flight_per_actor=_CALLS + _WAITING,
                    enable_true_multi_threading=True,
                ),
                **options,  # other than a reader's: else Ray Data would make one operator of both, on one machine
            )
        )
        for block in asked.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield [_to_row(text) for text in block["row"].to_pylist()]


def _with_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """An engine without accelerators computes on all processors of its machine: it asks for so many of them that the
    next is put on another. Raises `ClientError` where no machine has what is asked for."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    processors = [int(found["CPU"]) for found in machines if found.get("CPU")]
    default = 1 if options.get("num_gpus") or not processors else min(processors) // 2 + 1
    options = {"num_cpus": default, **options}
    wanted = {"CPU": options["num_cpus"], "GPU": options.get("num_gpus") or 0}
    if kind := options.get("accelerator_type"):
        wanted[f"accelerator_type:{kind}"] = 0.001
    if not any(all(found.get(name, 0) >= amount for name, amount in wanted.items()) for found in machines):
        told = ", ".join(f"{name} {amount:g}" for name, amount in wanted.items() if amount)
        raise ClientError(f"No machine of the cluster has what an engine is to have: {told}.")
    return options


def _room(options: Mapping[str, Any]) -> int:
    """For how many engines the cluster has room, by the machines that it has as the run begins."""
    if gpus := options.get("num_gpus"):
        return max(1, int(ray.cluster_resources().get("GPU", 0) // gpus))
    return max(1, sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")))


def _told(error: RayError) -> str:
    """The reason, without the stacks of the processes that it came through."""
    found = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(found).strip().splitlines() if line.strip()]
    reason = lines[-1] if lines else type(found).__name__
    if "No module named 'sightline'" in reason:
        return "The cluster's machines have no Sightline: install it there, in this version, as here."
    return f"The cluster cannot do it: {reason.rpartition('ClientError: ')[2]}"


# --- what goes between processes -------------------------------------------------------------------------------------


def _to_blocks(tasks: Iterator[Task], size: int) -> Iterator[Any]:
    while piece := list(itertools.islice(tasks, size)):
        yield pa.table({"task": [json.dumps(asdict(task)) for task in piece]}, _TASKS)


def _read_pictures(block: Any, directory: str) -> Iterator[Any]:
    """On the driver's machine, whose working directory is `directory`. One task at a time, so that Ray can cut the
    result where it gets large; links are left to the engine's machine."""
    for text in block["task"].to_pylist():
        contents: list[bytes | None] = []
        unreadable = None
        for picture in json.loads(text)["pictures"]:
            try:
                contents.append(None if picture.startswith(_LINKS) else Path(directory, picture).read_bytes())
            except (OSError, ValueError) as error:
                unreadable = getattr(error, "strerror", None) or str(error)
                break
        yield pa.table({"task": [text], "contents": [contents], "unreadable": [unreadable]}, _READ)


def _to_row(text: str) -> Row:
    row: Row = msgspec.convert(json.loads(text), Row)
    return row


class _Asker:
    """An actor of Ray Data: a model with its engine. Calls come from several threads at once, all are answered in one
    event loop."""

    def __init__(self, settings: Mapping[str, Any], model: str, arguments: Mapping[str, Any], version: str) -> None:
        """Returns when the model is loaded. Raises `ClientError`, a text of which is all that the driver is told."""
        if version != __version__:
            raise ClientError(f"A machine has Sightline {__version__}, and the one that asks has {version}.")
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._running = asyncio.Semaphore(arguments["concurrency"])
        log, said = logging.getLogger("sightline"), _LastError()
        log.addHandler(said)
        try:
            self._batch = Batch(settings=to_settings(settings), model=model, **arguments)
            self._do(self._batch.__aenter__())
        except (SightlineError, ClientError) as error:
            raise ClientError(said.message or str(error)) from None
        finally:
            log.removeHandler(said)

    def __call__(self, block: Any) -> Any:
        """A table `_READ` to a table `_ROWS`."""
        rows = self._do(self._answer_all(block.to_pylist()))
        return pa.table({"row": [json.dumps(asdict(row)) for row in rows]}, _ROWS)

    async def _answer_all(self, asked: list[dict[str, Any]]) -> list[Row]:
        return await asyncio.gather(*(self._answer(**one) for one in asked))

    async def _answer(self, task: str, contents: list[bytes | None], unreadable: str | None) -> Row:
        given = msgspec.convert(json.loads(task), _NamedTask)
        names = given.pictures
        if unreadable is not None:
            error = RowError("picture_unreadable", f"The picture cannot be read: {unreadable}.")
            return Row(given.index, given.id, names, given.prompt, error=error, extra=given.extra)
        pictures = tuple(name if content is None else content for name, content in zip(names, contents, strict=True))
        async with self._running:
            row = await self._batch.answer(Task(given.index, given.id, pictures, given.prompt, given.extra))
        return replace(row, pictures=names)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class _LastError(logging.Handler):
    """Keeps what the log says on this machine, for whoever cannot see it: why a model does not load."""

    message = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            self.message = record.getMessage()


@dataclass(frozen=True, slots=True)
class _NamedTask:
    """A `Task` whose pictures are paths and links, as all that is read from files."""

    index: int
    id: str
    pictures: tuple[str, ...]
    prompt: str
    extra: Mapping[str, Any]
