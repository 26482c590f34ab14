"""An object of one process, called from another by its interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import msgspec
import pytest

from sightline.api.responses.store import MemoryStore, ResponseStore, StoredResponse
from sightline.config import ResponseLimits
from sightline.errors import ObjectNotFound
from sightline.frontends.calls import Far, offered

pytestmark = pytest.mark.anyio


class Shelf(Protocol):
    async def put(self, name: str, items: tuple[int, ...], *, twice: bool = False) -> Mapping[str, int]: ...


class Wood:
    def __init__(self) -> None:
        self.private = "untouched"

    async def put(self, name: str, items: tuple[int, ...], *, twice: bool = False) -> Mapping[str, int]:
        assert isinstance(items, tuple)
        return {name: sum(items) * (2 if twice else 1)}

    async def burn(self) -> None:
        raise AssertionError


async def test_arguments_keep_their_types_names_and_defaults() -> None:
    calls = offered({"shelf": (Shelf, Wood())})
    assert set(calls) == {"shelf.put"}, "what the interface does not have cannot be called"

    async def call(method: str, arguments: bytes) -> bytes:
        return await calls[method](arguments)

    shelf = cast(Shelf, Far(Shelf, "shelf", call))
    assert await shelf.put("a", (1, 2)) == {"a": 3}
    assert await shelf.put(items=(1, 2), name="b", twice=True) == {"b": 6}
    with pytest.raises(TypeError):
        await shelf.put("a")  # type: ignore[call-arg]
    with pytest.raises(msgspec.ValidationError):
        await calls["shelf.put"](msgspec.msgpack.encode({"name": 5, "items": [], "twice": False}))


async def test_stored_responses_travel_whole() -> None:
    calls = offered({"responses": (ResponseStore, MemoryStore(ResponseLimits()))})

    async def call(method: str, arguments: bytes) -> bytes:
        return await calls[method](arguments)

    store: Any = Far(ResponseStore, "responses", call)
    stored = StoredResponse("resp_1", "t", None, b"{}", b"[1]", {"d": "data:x"}, (b"e",), ("item",))
    await store.put(stored)
    assert await store.get("resp_1", "t") == stored
    assert await store.holder_of("item", "t") == stored
    with pytest.raises(ObjectNotFound):
        await store.get("resp_1", "another")
    await store.delete("resp_1", "t")
    with pytest.raises(ObjectNotFound):
        await store.get("resp_1", "t")
