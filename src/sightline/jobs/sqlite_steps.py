"""What `sqlite.py` does inside a transaction, and rows as values. Every statement that a client's id reaches has the
tenant in it: `find` is the one way from an id to a row."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple
from typing import Any, Final

from sightline.errors import IdempotencyConflict, ObjectNotFound
from sightline.jobs import (
    KEY_KEPT_S,
    NEVER_RUN,
    TERMINAL,
    Batch,
    Counts,
    Ending,
    Item,
    Kind,
    Lease,
    LineError,
    Result,
    Usage,
)

PAGE: Final = 256
"""Results read at once."""
_BATCH = (
    "id", "tenant", "kind", "endpoint", "status", "created_at", "expires_at", "input_file_id", "output_file_id",
    "error_file_id", "has_output", "has_errors", "output_kept_s", "window", "metadata", "model", "entered", "ending",
    "key_id",
)  # fmt: skip
_IN_BATCH = f"INSERT INTO batches ({', '.join(_BATCH)}) VALUES ({', '.join('?' * len(_BATCH))})"


def insert(db: sqlite3.Connection, batch: Batch) -> int:
    db.execute(_IN_BATCH, to_row(batch))
    return find(db, batch.tenant, batch.kind, batch.id)


def find(db: sqlite3.Connection, tenant: str, kind: Kind, batch_id: str) -> int:
    row = db.execute(
        "SELECT place FROM batches WHERE id = ? AND tenant = ? AND kind = ?", (batch_id, tenant, kind)
    ).fetchone()
    if row is None:
        raise ObjectNotFound(f"There is no {'batch' if kind == 'batch' else 'job'} {batch_id[:128]!r}.")
    return int(row["place"])


def get(db: sqlite3.Connection, place: int) -> Batch:
    return to_batch(db.execute("SELECT * FROM batches WHERE place = ?", (place,)).fetchone())


def find_not_begun(db: sqlite3.Connection, batch_id: str) -> int | None:
    row = db.execute(
        "SELECT place FROM batches WHERE id = ? AND ending IS NULL AND status IN ('validating', 'cancelling')",
        (batch_id,),
    ).fetchone()
    return None if row is None else int(row["place"])


def find_by_key(db: sqlite3.Connection, tenant: str, kind: Kind, key: str, digest: str, now: float) -> Batch | None:
    row = db.execute(
        "SELECT batch, digest FROM keys WHERE tenant = ? AND kind = ? AND key = ? AND at > ?",
        (tenant, kind, key, now - KEY_KEPT_S),
    ).fetchone()
    if row is None:
        return None
    if row["digest"] != digest:
        raise IdempotencyConflict(
            "This Idempotency-Key came with another request before. Use a new key for a new request.",
            param="Idempotency-Key",
        )
    return get(db, row["batch"])


def add(db: sqlite3.Connection, place: int, items: Iterable[Item]) -> None:
    db.executemany(
        "INSERT OR IGNORE INTO items (batch, idx, id, custom_id, body) VALUES (?, ?, ?, ?, ?)",
        ((place, i.index, i.id or f"batch_req_{os.urandom(16).hex()}", i.custom_id, i.body) for i in items),
    )


def begin(db: sqlite3.Connection, place: int, model: str | None, now: float) -> None:
    db.execute(
        "UPDATE batches SET model = ?, total = (SELECT count(*) FROM items WHERE batch = place) WHERE place = ?",
        (model, place),
    )
    if get(db, place).status == "cancelling":
        end(db, place, "cancelled", now)
    else:
        enter(db, place, "in_progress", now)


def enter(db: sqlite3.Connection, place: int, status: str, now: float) -> None:
    entered = json.loads(db.execute("SELECT entered FROM batches WHERE place = ?", (place,)).fetchone()["entered"])
    entered.setdefault(status, int(now))
    db.execute(
        "UPDATE batches SET status = ?, ended = ?, ended_at = ?, entered = ?, claimed_by = NULL WHERE place = ?",
        (status, status in TERMINAL, now if status in TERMINAL else None, json.dumps(entered), place),
    )


def end(db: sqlite3.Connection, place: int, ending: Ending, now: float) -> None:
    """Every item that is not done has its result, and no lease of one counts any more."""
    result = NEVER_RUN.get(ending)
    if result is not None:
        ended = db.execute(
            "UPDATE items SET state = 'done', fence = fence + 1, body = x'', error_code = ?, error_message = ?"
            " WHERE batch = ? AND state <> 'done'",
            (result.error_code, result.error_message, place),
        )
        db.execute("UPDATE batches SET failed = failed + ? WHERE place = ?", (ended.rowcount, place))
    db.execute("UPDATE batches SET ending = ? WHERE place = ?", (ending, place))
    if get(db, place).kind == "analysis":
        enter(db, place, ending, now)
    elif ending == "completed":
        enter(db, place, "finalizing", now)


def complete(db: sqlite3.Connection, item_id: str, fence: int, result: Result, now: float) -> bool:
    done = db.execute(
        "UPDATE items SET state = 'done', fence = fence + 1, body = x'', status_code = ?, request_id = ?, reply = ?,"
        " error_code = ?, error_message = ? WHERE id = ? AND fence = ? AND state = 'leased' RETURNING batch",
        (
            result.status_code, result.request_id, result.body, result.error_code, result.error_message, item_id, fence,
        ),
    ).fetchone()  # fmt: skip
    if done is None:
        return False
    place, usage = done["batch"], result.usage
    db.execute(
        "UPDATE batches SET completed = completed + ?, failed = failed + ?, input_tokens = input_tokens + ?,"
        " cached_tokens = cached_tokens + ?, output_tokens = output_tokens + ?, reasoning_tokens = reasoning_tokens + ?"
        " WHERE place = ?",
        (result.succeeded, not result.succeeded, *astuple(usage), place),
    )
    if not get(db, place).counts.unfinished:
        end(db, place, "completed", now)
    return True


def next_batch(db: sqlite3.Connection, boot: str, now: float) -> int | None:
    """Where the next item is to be leased from: analyses first, then of the tenant with the fewest under way, then the
    oldest."""
    batches = db.execute(
        "SELECT place, tenant, kind FROM batches WHERE ended = 0 AND status = 'in_progress' AND ending IS NULL"
        " AND EXISTS (SELECT 1 FROM items WHERE batch = place AND state = 'waiting' AND (boot <> ? OR at <= ?))",
        (boot, now),
    ).fetchall()
    if not batches:
        return None
    under_way = Counter(
        row["tenant"]
        for row in db.execute("SELECT tenant FROM items JOIN batches ON place = batch WHERE state = 'leased'")
    )
    first = min(batches, key=lambda row: (row["kind"] != "analysis", under_way[row["tenant"]], row["place"]))
    return int(first["place"])


def next_item(db: sqlite3.Connection, boot: str, now: float) -> sqlite3.Row | None:
    """The item to lease; those that were tried before come last."""
    if (place := next_batch(db, boot, now)) is None:
        return None
    return db.execute(  # type: ignore[no-any-return]
        "SELECT items.*, batches.id AS batch_id, tenant, key_id, endpoint FROM items JOIN batches ON place = batch"
        " WHERE batch = ? AND state = 'waiting' AND (boot <> ? OR at <= ?) ORDER BY attempts, idx LIMIT 1",
        (place, boot, now),
    ).fetchone()


def results(db: sqlite3.Connection, batch_id: str, after: int) -> list[tuple[Item, Result]]:
    rows = db.execute(
        "SELECT items.* FROM items JOIN batches ON place = batch WHERE batches.id = ? AND state = 'done' AND idx > ?"
        " ORDER BY idx LIMIT ?",
        (batch_id, after, PAGE),
    )
    return [(to_item(row), to_result(row)) for row in rows]


# --- rows and values --------------------------------------------------------------------------------------------------


def to_row(batch: Batch) -> tuple[Any, ...]:
    values = {name: getattr(batch, name) for name in _BATCH}
    values["metadata"] = json.dumps(dict(batch.metadata))
    values["entered"] = json.dumps(dict(batch.entered))
    return tuple(values[name] for name in _BATCH)


def to_batch(row: sqlite3.Row) -> Batch:
    values = {name: row[name] for name in _BATCH}
    values["metadata"] = json.loads(row["metadata"])
    values["entered"] = json.loads(row["entered"])
    values["has_output"], values["has_errors"] = bool(row["has_output"]), bool(row["has_errors"])
    return Batch(
        **values,
        counts=Counts(row["total"], row["completed"], row["failed"]),
        usage=Usage(row["input_tokens"], row["cached_tokens"], row["output_tokens"], row["reasoning_tokens"]),
        errors=tuple(LineError(*error) for error in json.loads(row["errors"])),
    )


def to_item(row: sqlite3.Row) -> Item:
    return Item(row["idx"], row["custom_id"], row["body"], row["id"])


def to_lease(row: sqlite3.Row) -> Lease:
    """As it is once leased, from the row before."""
    return Lease(
        to_item(row),
        row["batch_id"],
        row["tenant"],
        row["endpoint"],
        fence=row["fence"] + 1,
        attempt=row["attempts"] + 1,
        key_id=row["key_id"],
    )


def to_result(row: sqlite3.Row) -> Result:
    return Result(row["status_code"], row["request_id"], row["reply"], row["error_code"], row["error_message"])
