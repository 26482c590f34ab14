"""Work that is never lost: batches and analyses that nobody waits for, in a durable queue.

    create -> (validate) -> items -> lease -> complete -> (files) -> finished

A `Store` keeps all of it; `sqlite.py` is the one that needs nothing installed. `runner.py` does the work. What has been
accepted is on the disk before anyone is told so, and each item's result counts exactly once, however often a server is
killed: an item is *leased* for a while, its holder renews, and who has lost the lease is *fenced off*.

The states of a batch are OpenAI's (wire contract, section 6):

    validating -> in_progress -> finalizing -> completed
    validating -> failed       in_progress -> expired       any that lives -> cancelling -> cancelled
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final, Literal, Protocol

Kind = Literal["batch", "analysis"]
Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
Ending = Literal["completed", "expired", "cancelled"]

TERMINAL: Final[frozenset[Status]] = frozenset({"failed", "completed", "expired", "cancelled"})
MAX_ATTEMPTS: Final = 3
"""Times that an item is tried before it becomes an error line `max_attempts`."""
KEY_KEPT_S: Final = 86_400
"""How long an Idempotency-Key is known."""
KEPT_S: Final = 30 * 86_400
"""How long a batch or an analysis that has ended is known, unless a store is told otherwise."""


@dataclass(frozen=True, slots=True)
class LineError:
    """What is wrong with an input file."""

    code: str
    message: str
    line: int | None = None
    """From 1 on; None: the file as a whole."""
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    total: int = 0
    completed: int = 0
    failed: int = 0

    @property
    def unfinished(self) -> int:
        return self.total - self.completed - self.failed


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens."""

    input_tokens: int = 0
    cached_tokens: int = 0
    """Part of `input_tokens`."""
    output_tokens: int = 0
    reasoning_tokens: int = 0
    """Part of `output_tokens`."""


@dataclass(frozen=True, slots=True)
class Batch:
    id: str
    tenant: str
    kind: Kind
    endpoint: str
    """`/v1/chat/completions`: how each item's body is to be read."""
    status: Status
    created_at: int
    """Seconds since 1970, as all times here."""
    expires_at: int
    input_file_id: str | None = None
    output_file_id: str | None = None
    """Set aside when it is made, so that writing the files once more after a crash makes no others. Of interest to a
    client from when `has_output`."""
    error_file_id: str | None = None
    has_output: bool = False
    has_errors: bool = False
    output_kept_s: int | None = None
    """How long its files are kept once written; None: until they are deleted."""
    window: str = "24h"
    metadata: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    """Of every line."""
    entered: Mapping[Status, int] = field(default_factory=dict)
    """When it came to each state that it has been in."""
    ending: Ending | None = None
    """What it becomes once its files are written: from then on no item of it runs."""
    key_id: str = ""
    """Of the API key that it came with, by whose rights and limits its items run; empty: there were no keys."""
    counts: Counts = Counts()
    usage: Usage = Usage()
    errors: tuple[LineError, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """One line of a batch."""

    index: int
    """Its place in the input, from 0 on."""
    custom_id: str
    body: bytes
    """JSON, as the client wrote it; empty once it is done."""
    id: str = ""
    """`batch_req_` and 128 random bits. The store gives it."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run an item until some moment, which `renew` puts off."""

    item: Item
    batch_id: str
    tenant: str
    endpoint: str
    fence: int
    """Rises whenever the item is leased or taken away: a holder with an older one has lost it."""
    attempt: int
    """From 1 on."""
    key_id: str = ""
    """As that of its batch."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of an item: an answer, or the reason why there is none."""

    status_code: int | None = None
    """None: it never ran, or never to an end; then `error_code` says why."""
    request_id: str = ""
    body: bytes = b""
    """JSON, as the route answered."""
    error_code: str | None = None
    """`batch_expired`, `batch_cancelled`, `max_attempts`."""
    error_message: str = ""
    usage: Usage = Usage()

    @property
    def succeeded(self) -> bool:
        return self.status_code is not None and 200 <= self.status_code < 300


NEVER_RUN: Final[Mapping[Ending, Result]] = {
    "expired": Result(
        error_code="batch_expired", error_message="The batch's time was over before this request was done."
    ),
    "cancelled": Result(
        error_code="batch_cancelled", error_message="The batch was cancelled before this request was done."
    ),
}
"""The result of each item that was not done when its batch ended so."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Wall time for what people are told, and for leases one that no administrator moves."""

    def wall(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since the machine started, the same in every process on it."""
        return time.monotonic()

    def boot(self) -> str:
        """Which start of the machine `monotonic` counts from. A lease of another has ended."""
        return _boot_id()


@cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a queue holds, of all tenants together."""

    batches: int = 0
    """And analyses, that have not ended."""
    waiting: int = 0
    """Items of them that are neither done nor leased."""
    under_way: int = 0
    """Items that are leased."""
    oldest_s: float = 0.0
    """How long ago the oldest of `batches` was made; 0 where there is none."""


class Store(Protocol):
    """The durable queue. Every change is on the disk (or wherever it is safe) when its call returns.

    Methods raise `StorageUnavailable` or `StorageFull`, and then nothing has changed. Those with a `tenant` know
    nothing of what belongs to others: `ObjectNotFound`. All may be called at once, from several processes too.
    """

    async def start(self) -> None: ...

    async def close(self) -> None:
        """Idempotent. Leases are not given back by this: `release` them first."""

    # --- what clients ask for ---------------------------------------------------------------------------------------

    async def create(
        self, batch: Batch, items: Sequence[Item] = (), *, key: str | None = None, digest: str = ""
    ) -> Batch:
        """Keeps a new batch, `validating`; with items, `in_progress` at once.

        With an idempotency `key` of this tenant's and kind's that is known, nothing is made and the batch of then is
        returned; raises `IdempotencyConflict` where the `digest` of its request was another. Any number of calls at
        once with one key make one batch. A key is known for `KEY_KEPT_S`.
        """
        ...

    async def find_by_key(self, tenant: str, kind: Kind, key: str, digest: str) -> Batch | None:
        """What an idempotency `key` that is known has made; raises as `create`."""
        ...

    async def get(self, tenant: str, kind: Kind, batch_id: str) -> Batch: ...

    async def list(self, tenant: str, kind: Kind, *, limit: int, after: str | None = None) -> Sequence[Batch]:
        """Newest first, at most `limit`, those behind the batch `after`. Raises `ObjectNotFound` where there is no
        such."""
        ...

    async def cancel(self, tenant: str, kind: Kind, batch_id: str) -> Batch:
        """`cancelling`: no item is leased any more, and every unfinished one has its result (`NEVER_RUN`); who holds
        one is fenced off. One that was `validating` has all of that when it is validated, so that each of its lines is
        told of too. Nothing changes in a batch that is `TERMINAL` or has its `ending`."""
        ...

    def results(self, batch_id: str) -> AsyncIterator[tuple[Item, Result]]:
        """The items that are done, in the order of the input. Of a batch with an `ending` always the same."""
        ...

    # --- what workers ask for ---------------------------------------------------------------------------------------

    async def add_items(self, batch_id: str, items: Sequence[Item]) -> None:
        """Of a batch that has not begun, else nothing happens. Idempotent: an index that is there stays as it is."""
        ...

    async def begin(self, batch_id: str, *, model: str | None) -> None:
        """`validating` -> `in_progress`, with the items that it has; one that is `cancelling` meanwhile has its
        `ending` now. Else nothing."""
        ...

    async def fail(self, batch_id: str, errors: Sequence[LineError]) -> None:
        """`validating` -> `failed`, or `cancelling` -> `cancelled`; its items go. Else nothing."""
        ...

    async def lease(self, worker: str, limit: int, lease_s: float) -> Sequence[Lease]:
        """Up to `limit` items of batches `in_progress` that nobody holds and whose time has come: analyses first, then
        of the tenant who has the fewest under way, of the batch that has waited longest, in order; those that were
        tried before behind those that were not, so that servers that are killed do not take the same ones with them
        each time."""
        ...

    async def renew(self, leases: Sequence[Lease], lease_s: float) -> Sequence[Lease]:
        """Those that were lost: no longer to be worked on."""
        ...

    async def complete(self, lease: Lease, result: Result) -> bool:
        """Whether it counts. False, and nothing changes, for a lease that was lost. The last one of a batch makes it
        `finalizing` (an analysis `completed`), with that `ending`."""
        ...

    async def give_back(self, lease: Lease, result: Result, delay_s: float, *, tried: bool = True) -> bool:
        """Failed in a way that may pass: it is leased again in `delay_s` at the earliest. After `MAX_ATTEMPTS` it is
        complete instead, as `exhausted(result)`; one that nobody began to work on was not `tried`, and the attempt
        does not count. False for a lease that was lost."""
        ...

    async def release(self, leases: Sequence[Lease]) -> None:
        """Given back by a worker that ends, at once and as if never tried."""
        ...

    async def sweep(self) -> None:
        """What time does: leases that ran out end (the items are leased again, or after `MAX_ATTEMPTS` complete),
        batches past `expires_at` expire as if cancelled but with their status as it is, keys are forgotten, and so are
        batches that ended long ago (their files end by themselves). To be called every second or so by every worker."""
        ...

    async def backlog(self) -> Backlog:
        """For those who look after the server."""
        ...

    # --- stages: the steps of a batch as a whole ----------------------------------------------------------------------

    async def due(self, worker: str, claim_s: float) -> Batch | None:
        """A batch that wants somebody: not begun, or with an `ending` and its files unwritten. Nobody else is given
        it for `claim_s`, but the same worker, and that one behind all others: a batch with which it gets nowhere keeps
        nobody's waiting. What is done for it is idempotent: two workers may do it at once, and after a crash it is done
        again."""
        ...

    async def finish(self, batch_id: str, *, has_output: bool, has_errors: bool) -> None:
        """To the state of its `ending`: its files are written. Nothing where it is `TERMINAL`."""
        ...


def exhausted(result: Result) -> Result:
    """The error line of an item that failed `MAX_ATTEMPTS` times, last with `result`."""
    why = result.error_message or "its server went away"
    return Result(
        request_id=result.request_id,
        error_code="max_attempts",
        error_message=f"The request was tried {MAX_ATTEMPTS} times and failed each time, last with: {why}",
    )
