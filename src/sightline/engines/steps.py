"""The thread in which an engine of ours computes: it owns the model and runs step after step.

Between two steps it takes what has come in: new generations, and those that nobody wants any more. A cancelled
generation therefore frees what it holds within one step. The event loop and the thread share nothing but the inbox
and each generation's queue (`delivery.py`).
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

from sightline.engines.delivery import EventQueue, Events, stopped
from sightline.errors import SightlineError
from sightline.types import Event, Finish

if TYPE_CHECKING:
    from sightline.engines.generation import Generation


G = TypeVar("G", bound="Generation[Any]")

_Command: TypeAlias = tuple[Literal["submit", "cancel", "close"], G | None]


class StepThread(ABC, Generic[G]):
    """Life: made -> `begin` (the thread runs) -> `submit` and `cancel`, from any thread -> `close`.

    The abstract methods are called in the thread only.
    """

    def __init__(self, name: str) -> None:
        self._inbox: SimpleQueue[_Command[G]] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def submit(self, generation: G) -> None:
        with self._lock:
            if not self._closed:
                self._inbox.put(("submit", generation))
                return
        generation.deliver([stopped()])

    def cancel(self, generation: G) -> None:
        """Nothing is delivered after the step that is running now. One that has ended is left alone."""
        self._inbox.put(("cancel", generation))

    def close(self) -> None:
        """Ends the thread after the step that is running now; what was under way gets `EngineUnavailable`."""
        self._inbox.put(("close", None))
        self._thread.join()

    # --- what an engine does -------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def is_idle(self) -> bool:
        """Whether a step would have nothing to do."""

    @abstractmethod
    def take(self, generation: G) -> None:
        """A new generation is in line from now on."""

    @abstractmethod
    def drop(self, generation: G) -> None:
        """Nobody wants it any more: what it holds is freed. It may have ended, or failed, long ago."""

    @abstractmethod
    def step(self) -> None:
        """Computes and delivers. An exception ends the engine: what concerns one request is delivered to it."""

    @abstractmethod
    def under_way(self) -> Iterable[G]:
        """Every generation that was taken and has not ended."""

    # --- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._take_commands():
                self.step()
        finally:
            # However it ends, nobody may be left waiting: not those under way, not those whose command is in line.
            with self._lock:
                self._closed = True
            while not self._inbox.empty():
                command, generation = self._inbox.get()
                if command == "submit" and generation is not None:
                    generation.deliver([stopped()])
            for generation in self.under_way():
                generation.deliver([stopped()])

    def _take_commands(self) -> bool:
        """Does what came in since the last step; waits if there is nothing else to do. False: it is time to stop."""
        while self.is_idle or not self._inbox.empty():
            command, generation = self._inbox.get()
            if command == "close" or generation is None:
                return False
            if command == "submit":
                self.take(generation)
            else:
                self.drop(generation)
        return True


async def generated(
    thread: StepThread[G], make: Callable[[Callable[[Events], None]], G]
) -> AsyncGenerator[Event, None]:
    """Runs one generation and yields its events, up to its `Finish`; raises the error that ended it.

    `make` is given what the generation shall deliver to. Closing it cancels the generation.
    """
    events = EventQueue(asyncio.get_running_loop())
    generation = make(events.put)
    thread.submit(generation)
    try:
        while True:
            for event in await events.get():
                if isinstance(event, SightlineError):
                    raise event
                yield event
                if isinstance(event, Finish):
                    return
    finally:
        thread.cancel(generation)
