"""The queue in Redis: for servers and workers on several machines. `queue_steps.lua` has what must be whole.

A key has its tenant in it, percent-encoded, and every client's id goes through `_reference`: docs/batches-redis.md
names the keys and says when each goes.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from sightline.errors import IdempotencyConflict, ObjectNotFound, StorageUnavailable
from sightline.jobs import (
    KEPT_S,
    KEY_KEPT_S,
    MAX_ATTEMPTS,
    NEVER_RUN,
    Backlog,
    Batch,
    Clock,
    Counts,
    Item,
    Kind,
    Lease,
    LineError,
    Result,
    Usage,
    exhausted,
)
from sightline.jobs.presence import Presence, name_of
from sightline.jobs.redis_bell import Bell
from sightline.jobs.redis_connection import PREFIX, Connection, Text, encode

PAGE: Final = 256
"""Results read at once."""
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_MADE: Final = (
    "id", "tenant", "kind", "endpoint", "created_at", "expires_at", "input_file_id", "output_file_id", "error_file_id",
    "output_kept_s", "window", "metadata", "key_id",
)  # fmt: skip
"""What a batch is from its beginning on; the rest of it changes."""
_TOKENS: Final = tuple(Usage.__dataclass_fields__)


class RedisStore:
    """A `Store` (the package says what that is)."""

    def __init__(
        self,
        connection: Connection,
        directory: Path,
        *,
        kept_s: int = KEPT_S,
        bell: Bell | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`directory`: where those on this machine see each other live and die. `bell`: wakes workers when there is
        something new. `clock`: in the place of Redis's own."""
        self._connection = connection
        self._presence = Presence(directory / "workers")
        self._directory = directory
        self._name = ""
        self._held: set[str] = set()
        """The items that this process has leases of, as queue.lua writes them."""
        self._is_unsure = False
        """Whether it may have leases that it was never told of."""
        self._kept_s = kept_s
        self._bell = bell
        self._clock = clock

    async def start(self) -> None:
        try:
            self._presence.begin()
            self._name = f"{name_of(self._directory)}:{self._presence.name}"
        except OSError as error:
            raise StorageUnavailable(f"The server cannot write its data directory: {error.strerror}.") from None
        await self._connection.start()

    async def close(self) -> None:
        self._name = ""
        if self._bell is not None:
            await self._bell.close()
        await self._connection.close()
        self._presence.end()

    async def _run(self, step: str, *args: Text, adds: bool = False, soon: bool = True) -> Any:
        """`adds`: refused where Redis's memory is full."""
        if not self._name:
            raise StorageUnavailable("The server cannot reach its queue yet; nothing was kept. Try again soon.")
        times = ("", "") if self._clock is None else (self._clock.wall(), self._clock.monotonic())
        return await self._connection.run("queue", step, *times, *args, makes_room=not adds, soon=soon)

    # --- what clients ask for ---------------------------------------------------------------------------------------

    async def create(
        self, batch: Batch, items: Sequence[Item] = (), *, key: str | None = None, digest: str = ""
    ) -> Batch:
        fields = _to_fields(batch, self._kept_s)
        reply = await self._run(
            "create",
            *(f"{encode(batch.tenant)}/{batch.id}", key or "", digest, KEY_KEPT_S, len(fields), *fields),
            *((batch.model or "", *_to_args(items)) if items else ()),
            adds=True,
        )
        made = _to_batch(_checked(reply))
        if items and made.id == batch.id:
            self._ring(made)
        return made

    async def find_by_key(self, tenant: str, kind: Kind, key: str, digest: str) -> Batch | None:
        reply = await self._run("find_by_key", encode(tenant), kind, key, digest, KEY_KEPT_S)
        return _to_batch(_checked(reply)) if reply else None

    async def get(self, tenant: str, kind: Kind, batch_id: str) -> Batch:
        return await self._find(tenant, kind, batch_id)

    async def list(self, tenant: str, kind: Kind, *, limit: int, after: str | None = None) -> Sequence[Batch]:
        edge: Text = "+inf"
        if after is not None:
            await self._find(tenant, kind, after)
            place = await self._connection.call("HGET", _key(tenant, after), "place")
            edge = f"({int(place)}"
        listed = f"{PREFIX}batches:{encode(tenant)}:{kind}"
        ids = await self._connection.call("ZRANGE", listed, edge, "-inf", "BYSCORE", "REV", "LIMIT", 0, limit)
        found = await self._connection.calls([("HGETALL", _key(tenant, batch_id.decode())) for batch_id in ids])
        return [_to_batch(reply) for reply in found if reply]

    async def cancel(self, tenant: str, kind: Kind, batch_id: str) -> Batch:
        await self._find(tenant, kind, batch_id)
        reply = await self._run("cancel", f"{encode(tenant)}/{batch_id}")
        if not reply:
            raise _unknown(kind, batch_id)
        return _to_batch(reply)

    async def _find(self, tenant: str, kind: Kind, batch_id: str) -> Batch:
        reply = await self._connection.call("HGETALL", _key(tenant, batch_id)) if _ID.fullmatch(batch_id) else None
        if not reply or _pairs(reply)["kind"] != kind.encode():
            raise _unknown(kind, batch_id)
        return _to_batch(reply)

    async def results(self, batch_id: str) -> AsyncIterator[tuple[Item, Result]]:
        owner = await self._connection.call("HGET", f"{PREFIX}owners", batch_id)
        if owner is None:
            return
        base = f"{PREFIX}batch:{owner.decode()}:{batch_id}"
        total, ending = await self._connection.call("HMGET", base, "total", "ending")
        rest = NEVER_RUN.get(ending.decode()) if ending else None
        for start in range(0, int(total or 0), PAGE):
            indices = range(start, min(start + PAGE, int(total)))
            names, kept = await self._connection.calls(
                [("HMGET", f"{base}:names", *indices), ("HMGET", f"{base}:results", *indices)], soon=False
            )
            for index, name, encoded in zip(indices, names, kept, strict=True):
                if name is None:
                    continue
                result = rest if encoded is None else _to_result(encoded)
                if result is not None:
                    yield _to_item(index, name), result

    # --- what workers ask for ---------------------------------------------------------------------------------------

    async def add_items(self, batch_id: str, items: Sequence[Item]) -> None:
        await self._run("add_items", batch_id, *_to_args(items), adds=True, soon=False)

    async def begin(self, batch_id: str, *, model: str | None) -> None:
        await self._run("begin", batch_id, model or "")
        if self._bell is not None:
            self._bell.ring("batch", batch_id)

    async def fail(self, batch_id: str, errors: Sequence[LineError]) -> None:
        await self._run("fail", batch_id, _to_json([astuple(error) for error in errors]))

    async def lease(self, worker: str, limit: int, lease_s: float) -> Sequence[Lease]:
        if self._is_unsure:
            await self._run("disown", self._name, *self._held)
            self._is_unsure = False
        try:
            given = await self._run("lease", self._name, limit, lease_s, soon=False)
        except StorageUnavailable:
            self._is_unsure = True
            raise
        leases = [_to_lease(told) for told in given]
        self._held |= {_member(lease) for lease in leases}
        return leases

    async def renew(self, leases: Sequence[Lease], lease_s: float) -> Sequence[Lease]:
        if not leases:
            return []
        lost = await self._run("renew", lease_s, *(arg for lease in leases for arg in _to_lease_args(lease)))
        self._held -= {_member(leases[int(place)]) for place in lost}
        return [leases[int(place)] for place in lost]

    async def complete(self, lease: Lease, result: Result) -> bool:
        usage = [arg for name in _TOKENS if (tokens := getattr(result.usage, name)) for arg in (name, tokens)]
        done = (*_to_lease_args(lease), _encode(result), int(result.succeeded), *usage)
        counts = await self._run("complete", *done, soon=False)
        self._held.discard(_member(lease))
        return bool(counts)

    async def give_back(self, lease: Lease, result: Result, delay_s: float, *, tried: bool = True) -> bool:
        last = _encode(exhausted(result))
        given = await self._run("give_back", *_to_lease_args(lease), delay_s, int(tried), MAX_ATTEMPTS, last)
        self._held.discard(_member(lease))
        return bool(given)

    async def release(self, leases: Sequence[Lease]) -> None:
        if leases:
            await self._run("release", *(arg for lease in leases for arg in _to_lease_args(lease)))
            self._held -= {_member(lease) for lease in leases}
            if self._bell is not None:
                self._bell.ring("batch", leases[0].item.id)

    async def sweep(self) -> None:
        # Of those who share the directory the kernel tells who is dead, at once; of others their silence does.
        here = self._name.partition(":")[0]
        names = [name.decode() for name in await self._connection.call("ZRANGE", f"{PREFIX}workers", 0, -1)]
        dead = [
            name
            for name in names
            if name.partition(":")[0] == here and not self._presence.is_alive(name.partition(":")[2])
        ]
        await self._run("sweep", self._name, MAX_ATTEMPTS, _encode(exhausted(Result())), *dead, soon=False)

    async def backlog(self) -> Backlog:
        batches, unfinished, under_way, oldest_s = await self._run("backlog", soon=False)
        return Backlog(batches, max(0, unfinished - under_way), under_way, max(0.0, float(oldest_s)))

    # --- stages -----------------------------------------------------------------------------------------------------

    async def due(self, worker: str, claim_s: float) -> Batch | None:
        reply = await self._run("due", self._name, worker, claim_s)
        return _to_batch(reply) if reply else None

    async def finish(self, batch_id: str, *, has_output: bool, has_errors: bool) -> None:
        await self._run("finish", batch_id, int(has_output), int(has_errors))

    def _ring(self, batch: Batch) -> None:
        if self._bell is not None:
            self._bell.ring(batch.kind, batch.id)


# --- strings and values -----------------------------------------------------------------------------------------------


def _key(tenant: str, batch_id: str) -> str:
    return f"{PREFIX}batch:{encode(tenant)}:{batch_id}"


def _checked(made_by_key: Any) -> Any:
    """Raises `IdempotencyConflict`."""
    if made_by_key == b"conflict":
        raise IdempotencyConflict(
            "This Idempotency-Key came with another request before. Use a new key for a new request.",
            param="Idempotency-Key",
        )
    return made_by_key


def _unknown(kind: Kind, batch_id: str) -> ObjectNotFound:
    return ObjectNotFound(f"There is no {'batch' if kind == 'batch' else 'job'} {batch_id[:128]!r}.")


def _to_json(value: Any) -> bytes:
    return msgspec.json.encode(value)


def _to_fields(batch: Batch, kept_s: int) -> list[Text]:
    """`kind` comes first: queue_steps.lua reads it there."""
    made = {name: getattr(batch, name) for name in _MADE}
    counts: dict[str, Text] = {**asdict(batch.counts), **asdict(batch.usage)}
    fields: dict[str, Text] = {
        "kind": batch.kind,
        "made": _to_json({**made, "metadata": dict(batch.metadata)}),
        "endpoint": batch.endpoint,
        "key_id": batch.key_id,
        "status": batch.status,
        "expires_at": batch.expires_at,
        "kept_s": kept_s,
        **counts,
    }
    return [part for pair in fields.items() for part in pair]


def _pairs(reply: Any) -> dict[str, bytes]:
    if isinstance(reply, Mapping):
        return {name.decode(): value for name, value in reply.items()}
    return {reply[i].decode(): reply[i + 1] for i in range(0, len(reply), 2)}


def _to_batch(reply: Any) -> Batch:
    fields = _pairs(reply)
    texts: dict[str, Any] = {name: fields[name].decode() for name in ("status", "ending", "model") if name in fields}
    numbers = {name: int(fields[name]) for name in (*Counts.__dataclass_fields__, *_TOKENS)}
    entered = {name[3:]: int(value) for name, value in fields.items() if name.startswith("at:")}
    errors = msgspec.json.decode(fields.get("errors", b"[]"))
    return Batch(
        **msgspec.json.decode(fields["made"]),
        **texts,
        entered=entered,  # type: ignore[arg-type]
        has_output=fields.get("has_output") == b"1",
        has_errors=fields.get("has_errors") == b"1",
        counts=Counts(*(numbers[name] for name in Counts.__dataclass_fields__)),
        usage=Usage(*(numbers[name] for name in _TOKENS)),
        errors=tuple(LineError(*error) for error in errors),
    )


def _to_args(items: Sequence[Item]) -> list[Text]:
    """In threes: its index, its names, its body."""
    return [
        part
        for item in items
        for part in (
            item.index,
            _to_json((item.id or f"batch_req_{os.urandom(16).hex()}", item.custom_id)),
            item.body,
        )
    ]


def _to_item(index: int, name: bytes, body: bytes = b"") -> Item:
    item_id, custom_id = msgspec.json.decode(name)
    return Item(index, custom_id, body, item_id)


def _to_lease(told: Sequence[Any]) -> Lease:
    tenant, batch_id, index, name, body, endpoint, key_id, fence, attempt = told
    return Lease(
        _to_item(int(index), name, body),
        batch_id.decode(),
        unquote(tenant.decode()),
        endpoint.decode(),
        fence=int(fence),
        attempt=int(attempt),
        key_id=key_id.decode(),
    )


def _to_lease_args(lease: Lease) -> tuple[Text, ...]:
    return f"{encode(lease.tenant)}/{lease.batch_id}", lease.item.index, lease.fence


def _member(lease: Lease) -> str:
    return f"{encode(lease.tenant)}/{lease.batch_id}/{lease.item.index}"


def _encode(result: Result) -> bytes:
    """MessagePack, without its tokens: those are the batch's."""
    return msgspec.msgpack.encode(
        (result.status_code, result.request_id, result.body, result.error_code, result.error_message)
    )


def _to_result(encoded: bytes) -> Result:
    return Result(*msgspec.msgpack.decode(encoded))
