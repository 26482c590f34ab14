"""The clients: each on a connection of its own that it keeps, in one process beside the gateway.

Bare asyncio. Of an answer they look at the status, where it ends, and whether it holds all of its words.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import cast

import uvloop

from sightline.bench.gateway import processes
from sightline.bench.gateway.cases import Case
from sightline.bench.gateway.stub import WORD

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_ENDS = (b"0\r\n\r\n", b"\r\n0\r\n\r\n")
_CONNECT_AT_ONCE = 64
_MOST_S = 120.0
_LONGER = 4
"""Times the seconds of a case may be added for a gateway that has answered too little to tell."""


@dataclass(frozen=True)
class Target:
    port: int
    key: str | None = None
    """Of the API."""


@dataclass
class Told:
    """What the clients saw in the time that is measured. Seconds."""

    latencies_s: list[float] = field(default_factory=list)
    firsts_s: list[float] = field(default_factory=list)
    """Until the first byte of an answer."""
    gaps_s: list[float] = field(default_factory=list)
    """For each answer, whole or not, the longest between two pieces of it."""
    errors: int = 0
    wrong: str = ""
    """The first answer that was not right."""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    """Of the clients themselves."""


class Run:
    """All clients of one case."""

    def __init__(self, case: Case, target: Target) -> None:
        self.case = case
        self.told = Told()
        self.number = 0
        self.random = random.Random(7)
        self.going = True
        self._wanted = 1 << 62
        self._reached = asyncio.Event()
        key = f"Authorization: Bearer {target.key}\r\n" if target.key else ""
        self._head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{target.port}\r\n{key}"
            f"Content-Type: application/json\r\nContent-Length: {case.body.size}\r\n\r\n"
        ).encode()
        self._repeated = self._head + case.body.numbered(0)

    def request(self) -> bytes:
        if len(self.case.body.pieces) == 1:
            return self._repeated
        self.number += 1
        return self._head + self.case.body.numbered(self.number)

    @property
    def answered(self) -> int:
        """Of what `told` is about."""
        return len(self.told.latencies_s) + self.told.errors

    async def until(self, answers: int) -> None:
        self._wanted = answers
        self._reached.clear()
        self.look()
        await self._reached.wait()

    def look(self) -> None:
        """Whether there are as many answers as are waited for."""
        if self.answered >= self._wanted:
            self._reached.set()

    def pause_s(self) -> float:
        """Before a client's next request."""
        return self.random.expovariate(self.case.rate / self.case.clients) if self.case.rate else 0.0


class Client(asyncio.Protocol):
    def __init__(self, run: Run) -> None:
        self._run = run
        self._pieces: list[bytes] = []
        self._asking = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._ask_later()

    def _ask_later(self) -> None:
        if pause_s := self._run.pause_s():
            asyncio.get_running_loop().call_later(pause_s, self._ask)
        else:
            self._ask()

    def _ask(self) -> None:
        if not self._run.going or self._transport.is_closing():
            return
        self._pieces, self._asking, self._left = [], True, -1
        self._gap = 0.0
        request = self._run.request()
        self._began = self._last = time.perf_counter()
        self._first = 0.0
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if not self._first:
            self._first = now
        elif now - self._last > self._gap:
            self._gap = now - self._last
        self._last = now
        self._pieces.append(data)
        if len(self._pieces) == 1:
            head, mark, body = data.partition(b"\r\n\r\n")
            if mark and (length := _LENGTH.search(head)):
                self._left = int(length[1]) - len(body)
        elif self._left > 0:
            self._left -= len(data)
        if self._left == 0 or (self._left < 0 and self._is_end(data)):
            self._answered(now)

    def _is_end(self, data: bytes) -> bool:
        """Of a body in chunks."""
        tail = data if len(data) > len(_ENDS[1]) else b"".join(self._pieces[-8:])
        return tail == _ENDS[0] or tail.endswith(_ENDS[1])

    def _answered(self, now: float) -> None:
        answer = b"".join(self._pieces)
        told = self._run.told
        if answer.startswith(b"HTTP/1.1 200") and answer.count(WORD) == self._run.case.words:
            told.latencies_s.append(now - self._began)
            told.firsts_s.append(self._first - self._began)
            told.gaps_s.append(self._gap)
        else:
            told.errors += 1
            told.wrong = told.wrong or answer[:2000].decode("latin-1")
        self._asking = False
        self._run.look()
        if not self._run.case.once:
            self._ask_later()

    def connection_lost(self, error: Exception | None) -> None:
        if self._asking and self._run.going:
            self._run.told.errors += 1


async def _drive(case: Case, target: Target, warm_s: float, measured_s: float, say: Callable[[object], None]) -> None:
    run = Run(case, target)
    if not case.once:
        await _connect(run, target)
        await asyncio.sleep(warm_s)
        await run.until(case.least)
        run.told = Told()
    say("begin")
    told = run.told
    began, cpu_s = time.perf_counter(), time.process_time()
    if case.once:
        await _connect(run, target)
        with suppress(TimeoutError):
            await asyncio.wait_for(run.until(case.clients), _MOST_S)
        told.errors += case.clients - run.answered
    else:
        await asyncio.sleep(measured_s)
        with suppress(TimeoutError):
            await asyncio.wait_for(run.until(case.least), _LONGER * measured_s)
    told.wall_s, told.cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
    run.told = Told()
    say("end")
    run.going = False
    say(told)


async def _connect(run: Run, target: Target) -> None:
    loop = asyncio.get_running_loop()
    for begin in range(0, run.case.clients, _CONNECT_AT_ONCE):
        some = range(begin, min(begin + _CONNECT_AT_ONCE, run.case.clients))
        await asyncio.gather(*(loop.create_connection(lambda: Client(run), "127.0.0.1", target.port) for _ in some))


def drive(case: Case, target: Target, warm_s: float, measured_s: float, said: Connection, cores: set[int]) -> None:
    """Runs in a process of its own. Says "begin", "end", and what the clients saw in between."""
    processes.pin(cores)
    uvloop.run(_drive(case, target, warm_s, measured_s, said.send))
