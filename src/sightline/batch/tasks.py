"""What is to be asked, and what becomes of it: the values of a batch, and where they are read from.

Nothing is opened before its turn, and nothing is kept after it: a batch may be larger than memory.
"""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sightline.client.pictures import Picture
from sightline.errors import InvalidRequest

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"})
"""Of files in a folder that are taken for pictures; a file that is named is taken whatever it is called."""
_TABLES = (".csv", ".jsonl", ".ndjson")
_OURS = ("id", "picture", "pictures", "prompt")
"""Columns of a table that mean something here. Others are carried through to the answers."""


@dataclass(frozen=True, slots=True)
class Task:
    """One question."""

    index: int
    """Its place in the input, from 0."""
    id: str
    pictures: tuple[Picture, ...]
    prompt: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Columns of the input that are carried through."""


@dataclass(frozen=True, slots=True)
class RowError:
    code: str
    """Of the wire contract where it has one, else the kind of error: `image_parse_error`, `Overloaded`."""
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """What became of a task: an answer, or an error."""

    index: int
    id: str
    pictures: tuple[str, ...]
    """Names: paths and URLs as they were given; `bytes`, `pixels` for what has none."""
    prompt: str
    answer: str | None = None
    error: RowError | None = None
    data: Any = None
    """The answer as a value, where a JSON schema was asked for."""
    model: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    image_tokens: int = 0
    seconds: float = 0.0
    """From its first try to its answer."""
    extra: Mapping[str, Any] = field(default_factory=dict)


_ANSWERS = {"error_code", "digest", *(column.name for column in fields(Row))} - {*_OURS, "index", "extra"}
"""Columns of what is written, which none of the input's may share a name with: one of the two would be lost."""


def to_name(picture: Picture) -> str:
    if isinstance(picture, str) and picture.startswith("data:"):
        return picture.partition(",")[0]
    if isinstance(picture, str | Path):
        return str(picture)
    return "bytes" if isinstance(picture, bytes | bytearray) else "pixels"


def to_tasks(items: Iterable[Picture | Sequence[Picture] | Task], prompt: str | None) -> Iterator[Task]:
    """Of a program's own pictures: each a task, or several together one. Raises `InvalidRequest` where a task has
    no prompt of its own and there is none for all."""
    for index, item in enumerate(items):
        if isinstance(item, Task):
            yield item
            continue
        pictures = tuple(item) if isinstance(item, list | tuple) else (item,)
        name = to_name(pictures[0]) if pictures else str(index)
        yield Task(index, name, pictures, _prompt(prompt, None, f"item {index}"))


def read_tasks(sources: Sequence[str], prompt: str | None, *, recursive: bool = False) -> Iterator[Task]:
    """`sources`: picture files, globs, folders, and tables (CSV with a header, JSONL) with the columns `picture` or
    `pictures` (several: a JSON list, or separated by `|` in CSV), and, where they want, `prompt` and `id`.

    Paths in a table are relative to it. Raises `InvalidRequest` for what is not there or cannot be read, at its turn.
    """
    index = 0
    for source in sources:
        for task in _read_source(source, prompt, recursive):
            yield Task(index, task.id, task.pictures, task.prompt, task.extra)
            index += 1


def count_tasks(sources: Sequence[str], *, recursive: bool = False) -> int:
    """How many `read_tasks` gives, without looking at a picture."""
    return sum(1 for _ in read_tasks(sources, "", recursive=recursive))


def _read_source(source: str, prompt: str | None, recursive: bool) -> Iterator[Task]:
    path = Path(source)
    if source.startswith(("http:", "https:", "data:")):
        yield _of_picture(source, prompt)
    elif path.is_dir():
        found = path.rglob("*") if recursive else path.iterdir()
        pictures = sorted(str(p) for p in found if p.suffix.lower() in SUFFIXES and p.is_file())
        if not pictures:
            raise InvalidRequest(f"There are no pictures in the folder {source!r}.", param=source)
        yield from (_of_picture(picture, prompt) for picture in pictures)
    elif path.suffix.lower() in _TABLES:
        yield from _read_table(path, prompt)
    elif path.exists():
        yield _of_picture(source, prompt)
    elif matches := sorted(glob.glob(source, recursive=True)):
        yield from (_of_picture(picture, prompt) for picture in matches)
    else:
        raise InvalidRequest(f"There is no picture, folder or table {source!r}.", param=source)


def _of_picture(picture: str, prompt: str | None) -> Task:
    return Task(0, picture, (picture,), _prompt(prompt, None, picture))


def _read_table(path: Path, prompt: str | None) -> Iterator[Task]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = _csv_rows(file, path) if path.suffix.lower() == ".csv" else _jsonl_rows(file, path)
            for place, row in rows:
                yield _to_task(row, place, path.parent, prompt)
    except OSError as error:
        raise InvalidRequest(f"Cannot read {str(path)!r}: {error.strerror}.", param=str(path)) from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"{str(path)!r} is not UTF-8.", param=str(path)) from None


def _csv_rows(file: Iterable[str], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(file)
    if not {"picture", "pictures", "prompt"} & set(reader.fieldnames or ()):
        raise InvalidRequest(f"{str(path)!r} has no column 'picture', 'pictures' or 'prompt'.", param=str(path))
    for row in reader:
        place = f"{path}, line {reader.line_num}"
        if None in row or None in row.values():
            raise InvalidRequest(f"{place}: it has not as many columns as the header.", param=str(path))
        if "pictures" in row:
            row["pictures"] = [part for part in row["pictures"].split("|") if part.strip()] or None
        yield place, row


def _jsonl_rows(file: Iterable[str], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError:
            raise InvalidRequest(f"{place}: it is not JSON.", param=str(path)) from None
        if not isinstance(row, dict):
            raise InvalidRequest(f"{place}: it is not a JSON object.", param=str(path))
        yield place, row


def _to_task(row: Mapping[str, Any], place: str, base: Path, prompt: str | None) -> Task:
    given = _pictures(row, place)
    if not isinstance(given, list) or not all(isinstance(picture, str) for picture in given):
        raise InvalidRequest(f"{place}: 'pictures' is a list of paths or URLs.", param="pictures")
    pictures = tuple(
        str(base / picture) if picture and not picture.startswith(("http:", "https:", "data:")) else picture
        for picture in given
    )
    own = row.get("prompt") or None
    if own is not None and not isinstance(own, str):
        raise InvalidRequest(f"{place}: 'prompt' is a text.", param="prompt")
    name = row.get("id") or next(iter(pictures), None) or place
    extra = {key: value for key, value in row.items() if key not in _OURS}
    if taken := sorted(_ANSWERS & extra.keys()):
        raise InvalidRequest(
            f"{place}: the answers have a column {taken[0]!r} of their own. Give that of the table another name.",
            param=taken[0],
        )
    return Task(0, str(name), pictures, _prompt(prompt, own, place), extra)


def _pictures(row: Mapping[str, Any], place: str) -> Any:
    """Of an empty cell, a picture without a name, which becomes the row's error: its question would be answered
    without the picture otherwise. A row has none where it lacks the column, or says `[]`."""
    one, several = row.get("picture"), row.get("pictures")
    if one and several:
        raise InvalidRequest(f"{place}: it has both 'picture' and 'pictures'. Name all in 'pictures'.", param="picture")
    if one or several or several == []:
        return several or ([one] if one else [])
    return [""] if row.keys() & {"picture", "pictures"} else []


def _prompt(everywhere: str | None, own: str | None, place: str) -> str:
    prompt = own if own is not None else everywhere
    if prompt is None:
        raise InvalidRequest(f"{place}: there is no prompt, of its own or for all (--prompt).", param="prompt")
    return prompt
