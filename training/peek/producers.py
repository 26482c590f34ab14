"""Batches made by other processes, handed over in shared memory.

A producer writes a batch into one of its own slots and says so in a queue; the trainer copies it to
the device and gives the slot back. Only a few hundred bytes travel through pipes.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import pickle
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Final, NamedTuple

import numpy as np

from training.peek.batches import Batch
from training.peek.studio import Size, Studio
from training.peek.tasks import TASKS, Mixture
from training.peek.world import MAX_PIXELS

_ALIGNED: Final = 64


def slot_bytes(size: Size) -> int:
    """Room for a batch: its pictures, and half as much again and some for what is asked about them."""
    return 2**22 + size.groups * size.pictures * MAX_PIXELS * 3 * 3 // 2


class Plan(NamedTuple):
    """What every producer knows from the start."""

    seed: tuple[int, ...]
    size: Size
    factors: Any
    joint: Any


class Ready(NamedTuple):
    """A batch that waits in a slot: the pickle without its arrays, and where these lie."""

    producer: int
    slot: int
    head: bytes
    spans: list[tuple[int, int]]


def write(batch: Batch, memory: memoryview) -> tuple[bytes, list[tuple[int, int]]]:
    """Put the arrays of `batch` into `memory`. Raises ValueError when they don't fit."""
    parts: list[pickle.PickleBuffer] = []
    head = pickle.dumps(batch, protocol=5, buffer_callback=parts.append)
    spans, end = list[tuple[int, int]](), 0
    for part in parts:
        raw = part.raw()
        start = -(-end // _ALIGNED) * _ALIGNED
        end = start + raw.nbytes
        if end > len(memory):
            raise ValueError(f"a batch needs more than {len(memory)} bytes: make groups or pictures fewer")
        memory[start:end] = raw
        spans.append((start, end))
    return head, spans


def read(ready: Ready, memory: memoryview) -> Batch:
    """The batch, its arrays views of `memory`: valid until the slot is given back."""
    batch: Batch = pickle.loads(ready.head, buffers=[memory[start:end] for start, end in ready.spans])
    return batch


def _produce(number: int, plan: Plan, names: list[str], free: Any, ready: Any) -> None:
    """One producer: as long as it is given slots, it fills them. Runs beside the trainer, at lower priority."""
    os.nice(5)
    slots = [SharedMemory(name) for name in names]
    factors = np.frombuffer(plan.factors, np.float64)
    studio = Studio(np.random.default_rng([*plan.seed, number]), plan.size, Mixture(factors))
    while (slot := free.get()) is not None:
        batch = studio.batch(joint=bool(plan.joint.value))
        ready.put(Ready(number, slot, *write(batch, slots[slot].buf)))


class Producers:
    """Processes that make batches ahead. `mixture` is read by all of them: adapting it reaches the next batch."""

    def __init__(self, count: int, seed: tuple[int, ...], size: Size, *, slots: int = 2) -> None:
        context = mp.get_context("spawn")
        factors = context.RawArray("d", [1.0] * len(TASKS))
        self.mixture = Mixture(np.frombuffer(factors, np.float64))
        self._joint = context.RawValue("b", 0)
        self._ready: Any = context.Queue()
        self._memory = [[SharedMemory(create=True, size=slot_bytes(size)) for _ in range(slots)] for _ in range(count)]
        self._free = [context.SimpleQueue() for _ in range(count)]
        plan = Plan(seed, size, factors, self._joint)
        self._processes = [
            context.Process(
                target=_produce,
                args=(number, plan, [m.name for m in self._memory[number]], self._free[number], self._ready),
                daemon=True,
            )
            for number in range(count)
        ]
        for process in self._processes:
            process.start()
        for free in self._free:
            for slot in range(slots):
                free.put(slot)

    @contextmanager
    def batch(self, *, joint: bool) -> Iterator[Batch]:
        """The next batch, for as long as the block lasts. Batches of the dense stage made ahead of a change to
        the joint one are dropped. Raises RuntimeError when a producer has died."""
        self._joint.value = joint
        while True:
            ready = self._next()
            batch = read(ready, self._memory[ready.producer][ready.slot].buf)
            if bool(batch.rows) == joint:
                break
            del batch
            self._free[ready.producer].put(ready.slot)
        try:
            yield batch
        finally:
            del batch
            self._free[ready.producer].put(ready.slot)

    def _next(self) -> Ready:
        while True:
            try:
                ready: Ready = self._ready.get(timeout=5)
            except queue.Empty:
                if not all(process.is_alive() for process in self._processes):
                    raise RuntimeError("a process that draws pictures has died: see its message above") from None
            else:
                return ready

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
        for memory in (memory for slots in self._memory for memory in slots):
            memory.unlink()


class Inline:
    """The same without another process: a batch is made when it is asked for."""

    def __init__(self, seed: tuple[int, ...], size: Size, mixture: Mixture | None = None) -> None:
        self.mixture = mixture or Mixture()
        self._studio = Studio(np.random.default_rng([*seed, 0]), size, self.mixture)

    @contextmanager
    def batch(self, *, joint: bool) -> Iterator[Batch]:
        yield self._studio.batch(joint=joint)

    def close(self) -> None:
        """Nothing to end."""


Source = Producers | Inline


class Ahead:
    """Runs `move` on the next batches in a thread, so that copying to a device overlaps computing on it."""

    def __init__(self, source: Source, move: Any, depth: int = 2) -> None:
        self._source, self._move = source, move
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._joint, self._closed = False, False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def next(self, *, joint: bool) -> Any:
        """The next batch of the stage asked for, moved. Raises what making or moving it raised."""
        self._joint = joint
        while True:
            item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            stage, moved = item
            if stage == joint:
                return moved

    def _run(self) -> None:
        try:
            while not self._closed:
                joint = self._joint
                with self._source.batch(joint=joint) as batch:
                    moved = self._move(batch)
                self._put((joint, moved))
        except BaseException as error:
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self._closed:
            try:
                self._queue.put(item, timeout=1)
            except queue.Full:
                continue
            return

    def close(self) -> None:
        self._closed = True
        self._thread.join(timeout=10)
