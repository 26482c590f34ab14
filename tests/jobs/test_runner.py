"""The workers inside a server: what becomes of answers, of what was taken away, and of a server that ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sightline.errors import StorageUnavailable
from sightline.jobs import TERMINAL, Batch, Item, Lease
from sightline.jobs.blobs import LocalBlobs
from sightline.jobs.database import Database
from sightline.jobs.files import Files, Quota, new_file_id
from sightline.jobs.files_sqlite import SqliteIndex
from sightline.jobs.runner import Answer, Bell, Execute, Runner
from sightline.jobs.schema import SCHEMA
from sightline.jobs.sqlite import SqliteStore
from sightline.jobs.stages import Stages
from tests.jobs.queue_contract import batch

pytestmark = pytest.mark.anyio

OK = Answer(200, "req", b'{"usage":{"prompt_tokens":2,"completion_tokens":1}}')


class Server:
    """A runner with all that it needs, and routes that a test writes."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        monkeypatch.setattr("sightline.jobs.runner._DELAYS_S", (0.01,))
        monkeypatch.setattr("sightline.jobs.runner._FAILING_S", 0.01)
        database = Database(directory / "sightline.db", SCHEMA)
        self.store = SqliteStore(directory, database=database)
        self.files = Files(SqliteIndex(database), LocalBlobs(directory / "files"), Quota(10**6, 10**9))
        self.stages = Stages(self.store, self.files, max_lines=100, max_bytes=10**6)
        self.asked: list[str] = []

    def runner(
        self, execute: Callable[[str], Any], at_once: int = 4, bell: Bell | None = None, poll_s: float = 0.02
    ) -> Runner:
        async def counted(lease: Lease) -> Answer:
            name = json.loads(lease.item.body)["name"]
            self.asked.append(name)
            answer = execute(name)
            return await answer if asyncio.iscoroutine(answer) else answer

        ask: Execute = counted
        return Runner(
            self.store,
            self.files,
            self.stages,
            ask,
            at_once=at_once,
            bell=bell,
            heartbeat_s=0.02,
            poll_s=poll_s,
            lease_s=5,
        )

    async def submit(self, count: int) -> Batch:
        async def lines() -> AsyncIterator[bytes]:
            for number in range(count):
                body = {"model": "m", "name": f"c-{number}"}
                line = {"custom_id": f"c-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
                yield json.dumps(line).encode() + b"\n"

        file = await self.files.create("t", "in", "batch", lines())
        made = batch(input_file_id=file.id, output_file_id=new_file_id(), error_file_id=new_file_id())
        return await self.store.create(Batch(**{n: getattr(made, n) for n in made.__slots__} | {"expires_at": 2**40}))

    async def submit_lost(self, name: str, expires_at: int) -> Batch:
        """One whose input's bytes are gone."""

        async def one() -> AsyncIterator[bytes]:
            yield name.encode()

        file = await self.files.create("t", "in", "batch", one())
        (self.directory / "files" / file.blob).unlink()
        return await self.store.create(batch(name, input_file_id=file.id, expires_at=expires_at))

    async def ended(self, batch_id: str = "batch_a") -> Batch:
        async with asyncio.timeout(20):
            while (found := await self.store.get("t", "batch", batch_id)).status not in TERMINAL:
                await asyncio.sleep(0.01)
        return found

    async def lines(self, file_id: str | None) -> dict[str, Any]:
        content = await self.files.read("t", file_id or "", 10**6)
        return {told["custom_id"]: told for told in map(json.loads, content.splitlines())}


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    server = Server(tmp_path, monkeypatch)
    await server.store.start()
    yield server
    await server.store.close()


async def test_what_may_pass_is_tried_again_and_what_will_not_is_told_at_once(server: Server) -> None:
    failed = Answer(500, "req", b'{"error":{"message":"It broke."}}', retryable=True)
    full = Answer(503, "req", b"{}", retryable=True, began=False)
    wrong = Answer(400, "req", b'{"error":{"message":"No."}}')
    answers = {"c-0": [failed, OK], "c-1": [failed] * 3, "c-2": [wrong], "c-3": [full] * 4 + [OK]}
    runner = server.runner(lambda name: answers[name].pop(0))
    made = await server.submit(4)
    await runner.start()
    over = await server.ended()
    await runner.close()
    assert not any(answers.values())
    assert (over.counts.completed, over.counts.failed, over.usage.input_tokens) == (2, 2, 4)
    assert set(await server.lines(made.output_file_id)) == {"c-0", "c-3"}
    told = await server.lines(made.error_file_id)
    assert told["c-2"]["response"] == {"status_code": 400, "request_id": "req", "body": {"error": {"message": "No."}}}
    assert told["c-1"]["response"] is None
    assert told["c-1"]["error"]["code"] == "max_attempts"
    assert "It broke." in told["c-1"]["error"]["message"]


async def test_while_the_engine_is_away_one_line_asks_for_all(server: Server) -> None:
    away = True
    at_once: list[int] = []
    under_way = 0

    async def answer(_: str) -> Answer:
        nonlocal under_way
        under_way += 1
        at_once.append(under_way)
        await asyncio.sleep(0.001)
        under_way -= 1
        return Answer(503, "req", b"{}", retryable=True, began=False) if away else OK

    await server.submit(40)
    runner = server.runner(answer, at_once=4)
    await runner.start()
    async with asyncio.timeout(20):
        while len(server.asked) < 30:
            await asyncio.sleep(0.01)
    assert set(at_once[8:30]) == {1}
    away = False
    over = await server.ended()
    await runner.close()
    assert (over.counts.completed, over.counts.failed) == (40, 0), "however long it is away"


async def test_a_keys_limits_slow_nobody_elses_lines(server: Server) -> None:
    under_way = most = refused = 0

    async def answer(_: str) -> Answer:
        nonlocal under_way, most, refused
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        under_way -= 1
        refused += refused < 100
        limited = Answer(429, "req", b"{}", retryable=True, began=False, is_limited=True, retry_after_s=0.01)
        return limited if refused < 100 else OK

    await server.submit(40)
    runner = server.runner(answer, at_once=4)
    await runner.start()
    over = await server.ended()
    await runner.close()
    assert most == 4, "the engine is neither away nor full"
    assert (over.counts.completed, over.counts.failed) == (40, 0), "waiting is not failing"


async def test_a_bug_in_a_route_stops_no_batch(server: Server) -> None:
    def broken(name: str) -> Answer:
        if name == "c-1":
            raise RuntimeError("a bug")
        return OK

    await server.submit(3)
    runner = server.runner(broken)
    await runner.start()
    over = await server.ended()
    await runner.close()
    assert (over.counts.completed, over.counts.failed) == (2, 1)
    assert server.asked.count("c-1") == 3


async def test_an_item_that_is_leased_again_before_its_last_run_has_ended(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is under way then: its lease is renewed, whatever the end of the last run does."""
    again, renewed, may_end, renewals = asyncio.Event(), asyncio.Event(), asyncio.Event(), 0
    give_back, renew = server.store.give_back, server.store.renew

    async def slowly_give_back(*args: Any, **more: Any) -> bool:
        given = await give_back(*args, **more)
        runner.wake()
        await again.wait()
        return given

    async def seen_renew(leases: Any, lease_s: float) -> Any:
        nonlocal renewals
        renewals += [lease.fence for lease in leases] == [3]
        if renewals == 3:  # by the first, the last run may not have ended
            renewed.set()
        return await renew(leases, lease_s)

    async def answer(_: str) -> Answer:
        if len(server.asked) == 1:
            return Answer(429, "req", b"{}", retryable=True, began=False, is_limited=True, retry_after_s=0)
        again.set()
        await may_end.wait()
        return OK

    monkeypatch.setattr(server.store, "give_back", slowly_give_back)
    monkeypatch.setattr(server.store, "renew", seen_renew)
    await server.submit(1)
    runner = server.runner(answer)
    await runner.start()
    async with asyncio.timeout(20):
        await again.wait()
        await renewed.wait()
    may_end.set()
    over = await server.ended()
    await runner.close()
    assert over.counts.completed == 1


async def test_an_input_that_cannot_be_read_keeps_no_other_batch_waiting(server: Server) -> None:
    lost = await server.submit_lost("lost", expires_at=2**40)
    await server.submit(2)
    runner = server.runner(lambda _: OK)
    await runner.start()
    assert (await server.ended()).counts.completed == 2, "it came later, and is done"
    await runner.close()
    assert (await server.store.get("t", "batch", lost.id)).status == "validating", "it may be there again later"


async def test_an_input_that_could_not_be_read_until_its_time_was_over(server: Server) -> None:
    lost = await server.submit_lost("lost", expires_at=1)
    left = await server.submit_lost("left", expires_at=1)
    await server.store.cancel("t", "batch", left.id)
    runner = server.runner(lambda _: OK)
    await runner.start()
    over, cancelled = await server.ended(lost.id), await server.ended(left.id)
    await runner.close()
    assert (over.status, [error.code for error in over.errors]) == ("failed", ["batch_expired"])
    assert cancelled.status == "cancelled"


async def test_no_more_than_so_many_at_once_and_a_cancellation_ends_them(server: Server) -> None:
    under_way, left = 0, 0

    async def hang(_: str) -> Answer:
        nonlocal under_way, left
        under_way += 1
        try:
            await asyncio.Event().wait()
        finally:
            left += 1
        raise AssertionError

    made = await server.submit(10)
    runner = server.runner(hang, at_once=3)
    await runner.start()
    async with asyncio.timeout(20):
        while under_way < 3:
            await asyncio.sleep(0.01)
        await server.store.cancel("t", "batch", made.id)
        over = await server.ended()
        while left < 3:
            await asyncio.sleep(0.01)
    await runner.close()
    assert (over.status, under_way) == ("cancelled", 3)
    assert {told["error"]["code"] for told in (await server.lines(made.error_file_id)).values()} == {"batch_cancelled"}


async def test_a_server_that_ends_gives_back_what_it_holds(server: Server) -> None:
    begun = asyncio.Event()

    async def hang(_: str) -> Answer:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    await server.submit(2)
    first = server.runner(hang)
    await first.start()
    await begun.wait()
    await first.close()
    await first.close()
    leases = await server.store.lease("w", 9, 5)
    assert [lease.attempt for lease in leases] == [1, 1], "as if never tried"
    await server.store.release(leases)
    second = server.runner(lambda _: OK)
    await second.start()
    assert (await server.ended()).counts.completed == 2
    await second.close()


async def test_a_result_waits_until_it_can_be_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    complete, refused = server.store.complete, 0

    async def sometimes(*args: Any) -> bool:
        nonlocal refused
        if refused < 3:
            refused += 1
            raise StorageUnavailable("The disk is away.")
        return await complete(*args)

    monkeypatch.setattr(server.store, "complete", sometimes)
    await server.submit(2)
    runner = server.runner(lambda _: OK)
    await runner.start()
    assert (await server.ended()).counts.completed == 2
    await runner.close()
    assert server.asked == ["c-0", "c-1"], "it is not asked again"


async def test_one_that_has_room_is_woken_and_one_that_is_busy_does_not_listen(server: Server) -> None:
    class Rung:
        def __init__(self) -> None:
            self.rung, self.listening = asyncio.Event(), 0

        async def listen(self) -> bool:
            self.listening += 1
            await self.rung.wait()
            self.rung.clear()
            return True

    async def hang(_: str) -> Answer:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    bell, begun = Rung(), asyncio.Event()
    runner = server.runner(hang, at_once=1, bell=bell, poll_s=60)
    await runner.start()
    async with asyncio.timeout(10):
        while not bell.listening:
            await asyncio.sleep(0.001)
        job = batch("job", kind="analysis", expires_at=2**40)
        await server.store.create(job, [Item(0, "", b'{"name": "c-0"}')])
        bell.rung.set()
        await begun.wait()
    await asyncio.sleep(0)
    assert bell.listening == 1, "it has no room"
    await runner.close()


async def test_what_cannot_be_reached_is_told_once(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sweep, asked = server.store.sweep, 0

    async def sometimes() -> None:
        nonlocal asked
        asked += 1
        if asked < 5:
            raise StorageUnavailable("It is away.")
        await sweep()

    caplog.set_level("INFO")
    monkeypatch.setattr(server.store, "sweep", sometimes)
    runner = server.runner(lambda _: OK)
    await runner.start()
    async with asyncio.timeout(10):
        while asked < 7:
            await asyncio.sleep(0.01)
    await runner.close()
    assert caplog.messages == ["could not sweep: It is away.", "can sweep again"]
