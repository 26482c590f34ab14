"""What is kept of responses: for whom, how long, and in how many bytes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.api.responses.items import read_items
from sightline.api.responses.objects import OutputMessage, OutputText, ResponseReply
from sightline.api.responses.request import to_response
from sightline.api.responses.schema import read_responses_body
from sightline.api.responses.store import (
    MemoryStore,
    StoredResponse,
    _own_bytes,
    to_input,
    to_output,
    to_record,
    without_urls,
)
from sightline.config import HttpLimits, ResponseLimits
from sightline.errors import ObjectNotFound


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def store(clock: Clock | None = None, **limits: Any) -> MemoryStore:
    return MemoryStore(ResponseLimits(**limits), clock or Clock())


def url(fill: str, size: int) -> str:
    return "data:image/png;base64," + fill * size


def picture(source: str) -> dict[str, Any]:
    return {"type": "input_image", "image_url": source}


def response(response_id: str, before: str | None = None) -> ResponseReply:
    fields = {"model": "m", "previous_response_id": before}
    message = OutputMessage(id=f"msg_of_{response_id}", status="completed", content=(OutputText(text="yes"),))
    reply = to_response(read_responses_body(fields), response_id, 1)
    return msgspec.structs.replace(reply, status="completed", output=(message,))


async def record(
    response_id: str, *sources: str, tenant: str = "t", before: str | None = None, item_id: str | None = None
) -> StoredResponse:
    sent: dict[str, Any] = {"role": "user", "content": [picture(s) for s in sources]}
    items = read_items([{**sent, "id": item_id}], HttpLimits())
    return await to_record(response(response_id, before), tenant, [placed.item for placed in items])


async def is_kept(kept: MemoryStore, response_id: str, tenant: str = "t") -> bool:
    try:
        await kept.get(response_id, tenant)
    except ObjectNotFound:
        return False
    return True


@pytest.mark.anyio
async def test_items_come_back_as_they_were() -> None:
    kept = store()
    output = [{"type": "input_text", "text": "x"}, picture(url("B", 400_000))]
    sent: list[Any] = [
        {"role": "user", "content": [picture(url("A", 50)), {"type": "input_text", "text": "y"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": output},
        {"role": "user", "content": [picture("https://h/x.png")]},
    ]
    items = [placed.item for placed in read_items(sent, HttpLimits())]
    await kept.put(await to_record(response("resp_1"), "t", items))
    stored = await kept.get("resp_1", "t")
    assert to_input(stored) == items
    assert [item["content"][0]["text"] for item in to_output(stored)] == ["yes"]
    assert b"AAAA" not in stored.input
    shown = json.dumps(without_urls(to_input(stored)))
    assert "AAAA" not in shown
    assert "https" not in shown


@pytest.mark.anyio
async def test_a_picture_is_kept_once_however_often_it_is_sent() -> None:
    kept = store()
    big = url("A", 1_000_000)
    await kept.put(await record("resp_1", big))
    once = kept.num_bytes
    assert once > 1_000_000
    await kept.put(await record("resp_2", big, big, before="resp_1"))
    await kept.put(await record("resp_3", "".join([big[:30], big[30:]])))
    assert kept.num_bytes < once + 10_000
    first, third = await kept.get("resp_1", "t"), await kept.get("resp_3", "t")
    assert next(iter(first.pictures.values())) is next(iter(third.pictures.values())), "the same bytes, not a copy"


@pytest.mark.anyio
async def test_nothing_is_left_when_all_is_deleted() -> None:
    kept = store()
    for n in range(3):
        await kept.put(await record(f"resp_{n}", url("A", 100), url(str(n), 100)))
    await kept.put(await record("resp_0", url("A", 100)))  # again, as at the end of a run in the background
    for n in (1, 0, 2):
        await kept.delete(f"resp_{n}", "t")
    assert kept.num_bytes == 0
    shelf = kept._shelves["t"]
    assert not any((shelf.held, shelf.items, shelf.pictures))


@pytest.mark.anyio
async def test_another_tenant_sees_nothing() -> None:
    kept = store()
    await kept.put(await record("resp_1", url("A", 100), item_id="msg_1"))
    before = kept.num_bytes
    await kept.put(await record("resp_2", url("A", 100), tenant="other", item_id="msg_1"))
    assert kept.num_bytes >= before + 100, "not even the bytes of a picture are shared"
    for ask in (kept.get("resp_1", "other"), kept.delete("resp_1", "other"), kept.get("resp_2", "t")):
        with pytest.raises(ObjectNotFound, match="There is no response"):
            await ask
    assert (await kept.holder_of("msg_1", "t")).id == "resp_1"
    assert (await kept.holder_of("msg_1", "other")).id == "resp_2"
    with pytest.raises(ObjectNotFound, match="There is no item"):
        await kept.holder_of("msg_of_resp_1", "other")
    assert (await kept.holder_of("msg_of_resp_1", "t")).id == "resp_1"


@pytest.mark.anyio
async def test_what_was_used_longest_ago_goes_first() -> None:
    kept = store(max_bytes=350_000)
    for n in range(3):
        await kept.put(await record(f"resp_{n}", url(str(n), 100_000)))
    await kept.get("resp_0", "t")
    await kept.put(await record("resp_3", url("3", 100_000)))
    assert [await is_kept(kept, f"resp_{n}") for n in range(4)] == [True, False, True, True]
    assert kept.num_bytes <= 350_000
    await kept.put(await record("resp_4", url("4", 400_000)))
    assert [await is_kept(kept, f"resp_{n}") for n in range(5)] == [True, False, True, True, False], (
        "what can never fit does not cost the others their place"
    )


@pytest.mark.anyio
async def test_whoever_has_the_most_makes_room() -> None:
    kept = store(max_bytes=350_000)
    await kept.put(await record("resp_small", url("s", 100_000), tenant="small"))
    for n in range(4):
        await kept.put(await record(f"resp_{n}", url(str(n), 100_000), tenant="large"))
    assert [await is_kept(kept, f"resp_{n}", "large") for n in range(4)] == [False, False, True, True]
    assert await is_kept(kept, "resp_small", "small"), "though it was used longest ago"


@pytest.mark.anyio
async def test_what_is_too_old_goes_though_its_tenant_never_comes_back() -> None:
    clock = Clock()
    kept = store(clock, max_age_s=100)
    await kept.put(await record("resp_1", tenant="gone"))
    clock.now += 200
    await kept.put(await record("resp_2"))
    assert list(kept._shelves) == ["t"]


@pytest.mark.anyio
async def test_age_counts_from_the_last_use() -> None:
    clock = Clock()
    kept = store(clock, max_age_s=7200)
    await kept.put(await record("resp_1"))
    clock.now += 7000
    assert await is_kept(kept, "resp_1")
    clock.now += 7000
    assert await is_kept(kept, "resp_1")
    clock.now += 7201
    with pytest.raises(ObjectNotFound, match="kept for 2 hours after they were last used"):
        await kept.get("resp_1", "t")
    assert kept.num_bytes == 0


@pytest.mark.anyio
async def test_a_client_cannot_name_a_stored_picture() -> None:
    """The store writes an object where a client may only write a string."""
    kept = store()
    await kept.put(await record("resp_1", url("A", 100)))
    digest = next(iter((await kept.get("resp_1", "t")).pictures))
    forged = f'{{"sha256":"{digest}"}}'
    await kept.put(await record("resp_2", forged, tenant="other"))
    stored = await kept.get("resp_2", "other")
    assert to_input(stored)[0]["content"][0]["image_url"] == forged


_OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "get", "delete", "wait"]),
        st.integers(0, 5),
        st.sampled_from(["t", "u"]),
        st.lists(st.sampled_from(["A", "B", "C"]), max_size=3),
    ),
    max_size=30,
)


@given(_OPERATIONS)
@settings(max_examples=100, deadline=None)
def test_the_bytes_are_those_of_what_is_there(operations: list[tuple[str, int, str, list[str]]]) -> None:
    """Whatever happens: nothing is counted twice or left behind, and the bound holds."""
    clock = Clock()
    kept = store(clock, max_bytes=30_000, max_age_s=50)

    async def run() -> None:
        for operation, n, tenant, fills in operations:
            response_id = f"resp_{tenant}{n}"
            match operation:
                case "put":
                    await kept.put(await record(response_id, *(url(f, 4_000) for f in fills), tenant=tenant))
                case "get":
                    await is_kept(kept, response_id, tenant)
                case "delete" if await is_kept(kept, response_id, tenant):
                    await kept.delete(response_id, tenant)
                case _:
                    clock.now += 20
            assert kept.num_bytes <= 30_000
            for shelf in kept._shelves.values():
                there = [held.stored for held in shelf.held.values()]
                pictures = {digest: held for stored in there for digest, held in stored.pictures.items()}
                assert set(shelf.pictures) == set(pictures)
                assert shelf.num_bytes == sum(map(len, pictures.values())) + sum(map(_own_bytes, there))
                assert set(shelf.items.values()) <= set(shelf.held)

    asyncio.run(run())
