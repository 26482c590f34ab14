"""What is kept of responses: to go on from one (`previous_response_id`), and to give it out again.

A record is what one response added to its conversation, as JSON, and points to the response before it; so a long
conversation is kept once, however many responses it has. Pictures are taken out of the JSON and kept once by content:
the same picture sent again costs nothing.

    to_record, to_input, to_output   items <-> a record
    ResponseStore                    the seam: who may see a record is decided behind it, nowhere else
    MemoryStore                      in memory, bounded in bytes and in age
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import msgspec

from sightline.api.responses.objects import ResponseReply
from sightline.api.wire import encode
from sightline.config import ResponseLimits
from sightline.errors import ObjectNotFound

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredResponse:
    id: str
    tenant: str
    previous_id: str | None
    response: bytes
    """The response object, as JSON."""
    input: bytes
    """The items that came with its request, as JSON, without their pictures."""
    pictures: Mapping[str, str] = field(default_factory=dict)
    """By digest: the data: URLs that `input` names."""
    events: tuple[bytes, ...] = ()
    """Of a response that ran in the background: its stream, a frame for each sequence number."""
    item_ids: tuple[str, ...] = ()
    """Of its input and its output."""


class ResponseStore(Protocol):
    """Every method takes the tenant who asks, and sees nothing of others."""

    async def put(self, stored: StoredResponse) -> None:
        """Keeps it, in place of one of the same id."""
        ...

    async def get(self, response_id: str, tenant: str) -> StoredResponse:
        """Raises `ObjectNotFound`."""
        ...

    async def holder_of(self, item_id: str, tenant: str) -> StoredResponse:
        """The response that has the item in its input or output. Raises `ObjectNotFound`."""
        ...

    async def delete(self, response_id: str, tenant: str) -> None:
        """Raises `ObjectNotFound`."""
        ...


# --- records ---------------------------------------------------------------------------------------------------------

_KEPT = "sha256"
"""Where a picture's URL is kept apart, an object of this key stands for it. A client cannot write one: what it sends
there is a string."""
_OFF_LOOP_BYTES = 256 * 1024


async def to_record(response: ResponseReply, tenant: str, items: Sequence[Item]) -> StoredResponse:
    """`items`: those that came with the response's request."""
    urls = [part.get("image_url", "") for item in items for part in _picture_parts(item)]
    if sum(map(len, urls)) > _OFF_LOOP_BYTES:
        taken, pictures = await asyncio.to_thread(_take_pictures, items)
    else:
        taken, pictures = _take_pictures(items)
    return with_response(
        StoredResponse(response.id, tenant, response.previous_response_id, b"", encode(taken), pictures), response
    )


def with_response(record: StoredResponse, response: ResponseReply, events: Sequence[bytes] = ()) -> StoredResponse:
    """The record of what the response has come to."""
    ids = (*(item["id"] for item in _decode(record.input)), *(item.id for item in response.output))
    return replace(record, response=encode(response), events=tuple(events), item_ids=ids)


def to_input(stored: StoredResponse) -> list[Item]:
    """The items that came with its request, with their pictures."""

    def back(part: Item) -> Item:
        url = part.get("image_url")
        return {**part, "image_url": stored.pictures[url[_KEPT]]} if isinstance(url, dict) else part

    return [_with_pictures(item, back) for item in _decode(stored.input)]


def to_output(stored: StoredResponse) -> list[Item]:
    items: list[Item] = _decode(stored.response)["output"]
    return items


def is_finished(stored: StoredResponse) -> bool:
    """Whether anything is still to come of it."""
    return _decode(stored.response)["status"] not in ("queued", "in_progress")


def without_urls(items: Sequence[Item]) -> list[Item]:
    """As they are listed for those who have not asked for pictures."""
    return [_with_pictures(item, lambda part: {**part, "image_url": None}) for item in items]


def _take_pictures(items: Sequence[Item]) -> tuple[list[Item], dict[str, str]]:
    """The items with digests in place of data: URLs, and the URLs by digest."""
    pictures: dict[str, str] = {}

    def taken(part: Item) -> Item:
        url: str = part.get("image_url", "")
        if url[:5].lower() != "data:":
            return part
        digest = hashlib.sha256(url.encode()).hexdigest()
        pictures[digest] = url
        return {**part, "image_url": {_KEPT: digest}}

    return [_with_pictures(item, taken) for item in items], pictures


def _picture_parts(item: Item) -> Iterator[Item]:
    for body in (item.get("content"), item.get("output")):
        for part in body if isinstance(body, list) else ():
            if part["type"] == "input_image":
                yield part


def _with_pictures(item: Item, change: Callable[[Item], Item]) -> Item:
    """The item with its pictures' parts changed."""
    if not any(_picture_parts(item)):
        return item
    key = "content" if "content" in item else "output"
    return {**item, key: [change(part) if part["type"] == "input_image" else part for part in item[key]]}


def _decode(value: bytes) -> Any:
    return msgspec.json.decode(value)


# --- in memory -------------------------------------------------------------------------------------------------------

_OVERHEAD = 1024
"""Bytes that a record takes beside what it holds, about."""
_SWEEP_S = 60.0
"""How often what is too old is looked for where nobody asks for anything."""


class MemoryStore:
    """Gone with the process. Where the bytes run out, the tenant who has the most loses what it used longest ago, so
    that nobody can push out what is another's. Using a response is using those before it, for whoever goes on from one
    asks for all of them."""

    def __init__(self, limits: ResponseLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._shelves: dict[str, _Shelf] = {}
        self._swept = clock()

    @property
    def num_bytes(self) -> int:
        return sum(shelf.num_bytes for shelf in self._shelves.values())

    async def put(self, stored: StoredResponse) -> None:
        self._sweep()
        shelf = self._shelves.setdefault(stored.tenant, _Shelf())
        shelf.drop(stored.id)
        if _own_bytes(stored) + sum(map(len, stored.pictures.values())) > self._limits.max_bytes:
            return  # or everything else would go, and then this too
        shelf.add(stored, self._clock())
        while self.num_bytes > self._limits.max_bytes:
            max(self._shelves.values(), key=lambda shelf: shelf.num_bytes).drop_oldest()

    async def get(self, response_id: str, tenant: str) -> StoredResponse:
        return self._owned(tenant, response_id, f"response {response_id[:64]!r}")

    async def holder_of(self, item_id: str, tenant: str) -> StoredResponse:
        shelf = self._shelves.get(tenant, _NOTHING)
        return self._owned(tenant, shelf.items.get(item_id, ""), f"item {item_id[:64]!r}")

    async def delete(self, response_id: str, tenant: str) -> None:
        self._owned(tenant, response_id, f"response {response_id[:64]!r}")
        self._shelves[tenant].drop(response_id)

    def _owned(self, tenant: str, response_id: str, shown: str) -> StoredResponse:
        """The one place where it is decided who may see what."""
        self._sweep()
        shelf = self._shelves.get(tenant, _NOTHING)
        shelf.drop_older_than(self._clock() - self._limits.max_age_s)
        if response_id not in shelf.held:
            raise ObjectNotFound(
                f"There is no {shown} here. Responses are kept for {_span(self._limits.max_age_s)} after they were "
                "last used, for less when the server's memory for them is full, until it restarts, and only when "
                "'store' is not false."
            )
        return shelf.use(response_id, self._clock())

    def _sweep(self) -> None:
        if (now := self._clock()) - self._swept < _SWEEP_S:
            return
        self._swept = now
        for shelf in self._shelves.values():
            shelf.drop_older_than(now - self._limits.max_age_s)
        self._shelves = {tenant: shelf for tenant, shelf in self._shelves.items() if shelf.held}


@dataclass(slots=True)
class _Held:
    stored: StoredResponse
    used: float


@dataclass(slots=True)
class _Picture:
    url: str
    holders: int = 0


@dataclass(slots=True)
class _Shelf:
    """What is one tenant's. Nothing crosses tenants, not even a picture that both have."""

    held: OrderedDict[str, _Held] = field(default_factory=OrderedDict)
    """What was used longest ago first."""
    items: dict[str, str] = field(default_factory=dict)
    """From an item's id, which clients may choose, to the response that has it."""
    pictures: dict[str, _Picture] = field(default_factory=dict)
    """By digest."""
    num_bytes: int = 0

    def add(self, stored: StoredResponse, now: float) -> None:
        kept = {}
        for digest, url in stored.pictures.items():
            picture = self.pictures.setdefault(digest, _Picture(url))
            if picture.holders == 0:
                self.num_bytes += len(url)
            picture.holders += 1
            kept[digest] = picture.url
        stored = replace(stored, pictures=kept)
        self.num_bytes += _own_bytes(stored)
        self.held[stored.id] = _Held(stored, now)
        self.items.update(dict.fromkeys(stored.item_ids, stored.id))

    def use(self, response_id: str, now: float) -> StoredResponse:
        held = self.held[response_id]
        held.used = now
        self.held.move_to_end(response_id)
        return held.stored

    def drop(self, response_id: str) -> None:
        """Nothing where there is nothing."""
        held = self.held.pop(response_id, None)
        if held is None:
            return
        stored = held.stored
        self.num_bytes -= _own_bytes(stored)
        for item_id in stored.item_ids:
            if self.items.get(item_id) == response_id:
                del self.items[item_id]
        for digest in stored.pictures:
            picture = self.pictures[digest]
            picture.holders -= 1
            if picture.holders == 0:
                self.num_bytes -= len(picture.url)
                del self.pictures[digest]

    def drop_oldest(self) -> None:
        self.drop(next(iter(self.held)))

    def drop_older_than(self, oldest: float) -> None:
        while self.held and next(iter(self.held.values())).used < oldest:
            self.drop_oldest()


_NOTHING = _Shelf()
"""What a tenant has who has nothing. Never written to."""


def _own_bytes(stored: StoredResponse) -> int:
    return _OVERHEAD + len(stored.response) + len(stored.input) + sum(map(len, stored.events))


def _span(seconds: float) -> str:
    for size, name in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:g} {name}"
    return f"{seconds:g} seconds"
