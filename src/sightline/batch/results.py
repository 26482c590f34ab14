"""Rows to a file, from which a run that was cut off goes on.

While a run is under way its rows are in `OUT.partial`, a line of JSON each, in the order of the input, after a line
that says what was asked. What is there is done; a line that is not whole, because something died while it wrote, is cut
off and its task asked again. So no row is lost and none is there twice, whenever the run ends. When all are there the
file becomes OUT, in the format that its suffix names.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from sightline.batch.tasks import Row, Task, to_name
from sightline.errors import InvalidRequest, UnsupportedFeature
from sightline.jsonlines import to_line

FORMATS = (".jsonl", ".ndjson", ".csv", ".parquet")
_SYNC_S = 1.0
"""Between writes that are waited for until they are on the disk: what a power cut may cost."""
_ROWS_AT_ONCE = 1_000
"""Of a table that is written."""
_PARQUET = {"prompt_tokens": "int64", "completion_tokens": "int64", "image_tokens": "int64", "seconds": "float64"}
"""Columns that are no texts, and pyarrow's name of their type."""


class Results:
    """The rows of one run, written as they come. A context manager; `finish` makes the file that was asked for."""

    def __init__(self, out: Path, asked: Mapping[str, Any], *, restart: bool = False) -> None:
        """`asked`: what every task was asked, compared with what the rows of an earlier run were.

        Raises `InvalidRequest` for a file that is there already, for one of an unknown format, and for an earlier run
        that was asked something else; `UnsupportedFeature` where Parquet's library is not installed.
        """
        _check_format(out)
        if out.exists() and not restart:
            raise InvalidRequest(
                f"{str(out)!r} is there already. Name another, or say --restart to replace it.", param="out"
            )
        self.out = out
        self.partial = out.with_name(out.name + ".partial")
        self.num_done = 0
        self.num_failed = 0
        self._asked = json.loads(json.dumps(asked))  # as it will be read back
        if restart:
            self.partial.unlink(missing_ok=True)
        self._file = self._open()
        self._synced = time.monotonic()

    def _open(self) -> IO[bytes]:
        try:
            file = self.partial.open("r+b" if self.partial.exists() else "w+b")
        except OSError as error:
            raise InvalidRequest(f"Cannot write {str(self.partial)!r}: {error.strerror}.", param="out") from None
        if not self._read(file):
            file.truncate(0)
            file.seek(0)
            file.write(_line({"asked": self._asked}))
        return file

    def _read(self, file: IO[bytes]) -> bool:
        """Takes up what an earlier run left, the place to write on being its last whole line; False: nothing."""
        head = file.readline()
        if not head.endswith(b"\n"):
            return False
        self._compare(json.loads(head).get("asked", {}))
        end = file.tell()
        for line in file:
            if not line.endswith(b"\n"):
                break
            self.num_done += 1
            self.num_failed += json.loads(line)["error"] is not None
            end += len(line)
        file.seek(end)
        file.truncate()
        return True

    def _compare(self, before: Mapping[str, Any]) -> None:
        for key in sorted(before.keys() | self._asked.keys()):
            if before.get(key) != self._asked.get(key):
                raise InvalidRequest(
                    f"{str(self.partial)!r} has answers to another question: {key} was {before.get(key)!r} and is "
                    f"{self._asked.get(key)!r} now. Say --restart to begin anew, or name another file.",
                    param=key,
                )

    def remaining(self, tasks: Iterator[Task]) -> Iterator[Task]:
        """The tasks that are not done yet. Raises `InvalidRequest` when those that are done were other ones."""
        done = self._lines() if self.num_done else iter(())
        for row in itertools.islice(done, self.num_done):
            task = next(tasks, None)
            if task is None or digest_of(task) != row["digest"]:
                now = "not there any more" if task is None else f"{task.id!r} now"
                raise InvalidRequest(
                    f"The input has changed: what was {row['id']!r} is {now}. Say --restart to begin anew, or name "
                    "another file.",
                    param="input",
                )
        yield from tasks

    def write(self, row: Row) -> None:
        """The next row, in order."""
        self._file.write(_line({**_to_json(row), "digest": digest_of(row)}))
        self.num_failed += row.error is not None
        self.num_done += 1
        if time.monotonic() - self._synced >= _SYNC_S:
            self._sync()

    def _sync(self) -> None:
        _sync(self._file)
        self._synced = time.monotonic()

    def finish(self) -> None:
        """Makes the file that was asked for, whole or not at all."""
        self._sync()
        made = self.out.with_name(self.out.name + ".new")
        match self.out.suffix.lower():
            case ".csv":
                _write_csv(self._rows, made)
            case ".parquet":
                _write_parquet(self._rows, made)
            case _:
                _write_jsonl(self._rows, made)
        os.replace(made, self.out)
        self.close()
        self.partial.unlink()

    def _rows(self) -> Iterator[dict[str, Any]]:
        for row in self._lines():
            del row["digest"]
            yield row

    def _lines(self) -> Iterator[dict[str, Any]]:
        with self.partial.open("rb") as file:
            next(file)
            yield from map(json.loads, file)

    def close(self) -> None:
        """What has been written is kept: another run goes on from there."""
        if not self._file.closed:
            self._sync()
            self._file.close()

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def digest_of(task: Task | Row) -> str:
    """By which a task is known again. Of names, not of pictures: those may be many and large."""
    names = [to_name(picture) for picture in task.pictures]
    return hashlib.sha256(json.dumps([task.id, names, task.prompt]).encode()).hexdigest()[:16]


def _line(value: Mapping[str, Any]) -> bytes:
    try:
        return to_line(value)
    except UnicodeEncodeError:  # names of files are bytes, which need not be UTF-8
        return json.dumps(value, ensure_ascii=False).encode(errors="replace") + b"\n"


def _to_json(row: Row) -> dict[str, Any]:
    """What the input carried goes first, so that it cannot take the place of an answer."""
    own = asdict(row)
    del own["index"], own["extra"]
    if row.data is None:
        del own["data"]
    return {**row.extra, **own}


# --- formats ---------------------------------------------------------------------------------------------------------


def _check_format(out: Path) -> None:
    if out.suffix.lower() not in FORMATS:
        raise InvalidRequest(f"{out.name!r}: the formats are {', '.join(FORMATS)}.", param="out")
    if not out.parent.is_dir():
        raise InvalidRequest(f"There is no folder {str(out.parent)!r}.", param="out")
    if out.suffix.lower() == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise UnsupportedFeature(
                "Parquet needs pyarrow: pip install 'sightline[parquet]'. Or name a .jsonl or .csv file.", param="out"
            ) from None


Rows = Callable[[], Iterator[dict[str, Any]]]
"""All rows, as often as they are wanted: none of the formats holds them together."""


def _write_jsonl(rows: Rows, path: Path) -> None:
    with path.open("wb") as file:
        file.writelines(_line(row) for row in rows())
        _sync(file)


def _write_csv(rows: Rows, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _columns(rows), restval="")
        writer.writeheader()
        writer.writerows(map(_to_flat, rows()))
        _sync(file)


def _write_parquet(rows: Rows, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, getattr(pa, _PARQUET.get(name, "string"))()) for name in _columns(rows)])
    flat = map(_to_flat, rows())
    with pq.ParquetWriter(path, schema) as writer:
        while piece := list(itertools.islice(flat, _ROWS_AT_ONCE)):
            texts = [{k: v if k in _PARQUET or v is None else str(v) for k, v in row.items()} for row in piece]
            writer.write_table(pa.Table.from_pylist(texts, schema=schema))


def _columns(rows: Rows) -> list[str]:
    """Of all rows, in the order in which they come up."""
    columns: dict[str, None] = {}
    for row in rows():
        columns |= dict.fromkeys(_to_flat(row))
    return list(columns)


def _to_flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """For tables: an error is two columns, lists and objects are JSON, several pictures are separated by `|`."""
    error = row["error"] or {}
    flat = {
        "id": row["id"],
        "pictures": "|".join(row["pictures"]),
        "prompt": row["prompt"],
        "answer": row["answer"],
        "error_code": error.get("code"),
        "error": error.get("message"),
    }
    rest = {key: value for key, value in row.items() if key not in (*flat, "pictures")}
    return flat | {
        key: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
        for key, value in rest.items()
    }


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
