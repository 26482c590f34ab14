"""What every `Store` promises, as tests: a class of tests per store gives `store` and `clock`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from sightline.errors import IdempotencyConflict, ObjectNotFound
from sightline.jobs import (
    KEPT_S,
    KEY_KEPT_S,
    MAX_ATTEMPTS,
    Backlog,
    Batch,
    Clock,
    Item,
    Lease,
    LineError,
    Result,
    Store,
    Usage,
)

DONE = Result(200, "req_1", b'{"ok":1}', usage=Usage(3, 1, 2, 1))
BAD = Result(400, "req_2", b'{"error":1}')


@dataclass(frozen=True, slots=True)
class Moved(Clock):
    """A clock that a test moves. `hands`: wall time, the monotonic clock, and how often the machine was started."""

    hands: list[float] = field(default_factory=lambda: [1_000_000.0, 50.0, 0.0])

    def wall(self) -> float:
        return self.hands[0]

    def monotonic(self) -> float:
        return self.hands[1]

    def boot(self) -> str:
        return str(self.hands[2])

    def pass_(self, seconds: float) -> None:
        self.hands[0] += seconds
        self.hands[1] += seconds

    def jump(self, seconds: float) -> None:
        """An administrator sets the clock."""
        self.hands[0] += seconds


def batch(name: str = "a", tenant: str = "t", **fields: object) -> Batch:
    made = Batch(
        id=f"batch_{name}",
        tenant=tenant,
        kind="batch",
        endpoint="/v1/chat/completions",
        status="validating",
        created_at=1_000_000,
        expires_at=1_000_000 + 86_400,
        input_file_id="file-in",
        output_file_id="file-out",
        error_file_id="file-err",
        metadata={"k": "v"},
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def items(count: int, start: int = 0) -> list[Item]:
    return [Item(index, f"c-{index}", b'{"n":%d}' % index) for index in range(start, start + count)]


async def begun(store: Store, made: Batch, count: int = 3) -> Batch:
    await store.create(made)
    await store.add_items(made.id, items(count))
    await store.begin(made.id, model="m")
    return await store.get(made.tenant, made.kind, made.id)


async def told(store: Store, batch_id: str) -> list[tuple[str, str]]:
    return [(i.custom_id, r.error_code or str(r.status_code)) async for i, r in store.results(batch_id)]


def names(leases: Sequence[Lease]) -> list[str]:
    return [lease.item.custom_id for lease in leases]


class StoreContract:
    """Tests with the fixtures `store` (started) and `clock`."""

    pytestmark = pytest.mark.anyio

    async def test_a_batch_from_its_input_to_its_end(self, store: Store, clock: Moved) -> None:
        made = await store.create(batch())
        assert made == batch()
        due = await store.due("w", 30)
        assert due is not None
        assert due.id == made.id
        assert await store.due("other", 30) is None, "it is claimed"
        await store.add_items(made.id, items(2))
        await store.add_items(made.id, items(3))
        clock.pass_(5)
        await store.begin(made.id, model="m")
        running = await store.get("t", "batch", made.id)
        assert (running.status, running.counts.total, running.model) == ("in_progress", 3, "m")
        assert running.entered == {"in_progress": 1_000_005}
        assert await store.due("w", 30) is None
        leases = await store.lease("w", 10, 30)
        assert names(leases) == ["c-0", "c-1", "c-2"]
        assert [lease.item.body for lease in leases] == [b'{"n":0}', b'{"n":1}', b'{"n":2}']
        assert {(lease.attempt, lease.endpoint, lease.tenant) for lease in leases} == {(1, made.endpoint, "t")}
        assert await store.lease("w", 10, 30) == []
        for lease, result in zip(reversed(leases), (DONE, BAD, DONE), strict=True):
            assert await store.complete(lease, result)
        over = await store.get("t", "batch", made.id)
        assert (over.status, over.ending) == ("finalizing", "completed")
        assert (over.counts.completed, over.counts.failed, over.usage) == (2, 1, Usage(6, 2, 4, 2))
        assert await told(store, made.id) == [("c-0", "200"), ("c-1", "400"), ("c-2", "200")]
        due = await store.due("w", 30)
        assert due is not None
        await store.finish(made.id, has_output=True, has_errors=True)
        ended = await store.get("t", "batch", made.id)
        assert (ended.status, ended.has_output, ended.has_errors) == ("completed", True, True)
        assert set(ended.entered) == {"in_progress", "finalizing", "completed"}
        assert await store.due("w", 30) is None
        assert await store.cancel("t", "batch", made.id) == ended

    async def test_a_lease_that_was_lost_counts_no_more(self, store: Store, clock: Moved) -> None:
        made = await begun(store, batch(), 1)
        (first,) = await store.lease("w", 1, 30)
        clock.pass_(20)
        assert await store.renew([first], 30) == []
        clock.pass_(20)
        await store.sweep()
        assert await store.lease("w", 1, 30) == [], "it was renewed"
        clock.pass_(20)
        await store.sweep()
        (second,) = await store.lease("v", 1, 30)
        assert second.attempt == 2
        assert second.fence > first.fence
        assert await store.renew([first, second], 30) == [first]
        assert not await store.complete(first, BAD)
        assert not await store.give_back(first, BAD, 0)
        await store.release([first])
        assert await store.complete(second, DONE)
        assert not await store.complete(second, BAD), "once"
        assert await told(store, made.id) == [("c-0", "200")]

    async def test_the_clock_of_the_wall_moves_no_lease(self, store: Store, clock: Moved) -> None:
        await begun(store, batch(), 2)
        leases = await store.lease("w", 1, 30)
        for jump in (3600, -7200):
            clock.jump(jump)
            await store.sweep()
            assert await store.renew(leases, 30) == []
        clock.jump(-86_400 * 365)
        clock.pass_(31)
        await store.sweep()
        assert names(await store.lease("w", 5, 30)) == ["c-1", "c-0"]

    async def test_three_tries_and_then_an_error_line(self, store: Store, clock: Moved) -> None:
        made = await begun(store, batch(), 2)
        failed = Result(error_message="The engine is gone.")
        for attempt in range(1, MAX_ATTEMPTS + 1):
            leases = await store.lease("w", 2, 30)
            assert [lease.attempt for lease in leases] == [attempt, attempt]
            assert await store.give_back(leases[0], failed, 10)
            assert (await store.lease("w", 2, 30)) == [], "not before its time"
            clock.pass_(31)  # the other's lease runs out
            await store.sweep()
        assert await store.lease("w", 2, 30) == []
        assert await told(store, made.id) == [("c-0", "max_attempts"), ("c-1", "max_attempts")]
        ((_, result), _) = [found async for found in store.results(made.id)]
        assert "The engine is gone." in result.error_message
        assert (await store.get("t", "batch", made.id)).counts.failed == 2

    async def test_what_was_tried_before_comes_last(self, store: Store, clock: Moved) -> None:
        await begun(store, batch(), 6)
        await store.lease("killed", 2, 30)
        clock.pass_(31)
        await store.sweep()
        assert names(await store.lease("w", 5, 30)) == ["c-2", "c-3", "c-4", "c-5", "c-0"]

    async def test_what_nobody_began_is_no_try(self, store: Store, clock: Moved) -> None:
        await begun(store, batch(), 1)
        for _ in range(5):
            (lease,) = await store.lease("w", 1, 30)
            assert lease.attempt == 1
            await store.give_back(lease, BAD, 1, tried=False)
            clock.pass_(2)
        (lease,) = await store.lease("w", 1, 30)
        await store.release([lease])
        (lease,) = await store.lease("w", 1, 30)
        assert lease.attempt == 1

    async def test_cancelled_while_some_is_done_and_some_runs(self, store: Store, clock: Moved) -> None:
        made = await begun(store, batch(), 4)
        done, running = await store.lease("w", 2, 30)
        await store.complete(done, DONE)
        ended = await store.cancel("t", "batch", made.id)
        assert (ended.status, ended.ending, ended.counts.failed) == ("cancelling", "cancelled", 3)
        assert await store.renew([running], 30) == [running]
        assert not await store.complete(running, DONE)
        assert await store.lease("w", 9, 30) == []
        codes = [code for _, code in await told(store, made.id)]
        assert codes == ["200", "batch_cancelled", "batch_cancelled", "batch_cancelled"]
        assert (await store.due("w", 30)) is not None
        await store.finish(made.id, has_output=True, has_errors=True)
        assert (await store.get("t", "batch", made.id)).status == "cancelled"

    async def test_cancelled_before_its_lines_were_read(self, store: Store, clock: Moved) -> None:
        made = await store.create(batch())
        assert (await store.cancel("t", "batch", made.id)).status == "cancelling"
        due = await store.due("w", 30)
        assert due is not None
        assert due.ending is None
        await store.add_items(made.id, items(2))
        await store.begin(made.id, model="m")
        assert await told(store, made.id) == [("c-0", "batch_cancelled"), ("c-1", "batch_cancelled")]
        await store.create(batch("b"))
        await store.cancel("t", "batch", "batch_b")
        await store.fail("batch_b", [LineError("empty_file", "x")])
        assert (await store.get("t", "batch", "batch_b")).status == "cancelled"

    async def test_time_is_over(self, store: Store, clock: Moved) -> None:
        made = await begun(store, batch(), 2)
        (lease,) = await store.lease("w", 1, 30)
        await store.complete(lease, DONE)
        clock.pass_(86_401)
        await store.sweep()
        over = await store.get("t", "batch", made.id)
        assert (over.status, over.ending) == ("in_progress", "expired")
        assert await told(store, made.id) == [("c-0", "200"), ("c-1", "batch_expired")]
        await store.finish(made.id, has_output=True, has_errors=True)
        over = await store.get("t", "batch", made.id)
        assert (over.status, set(over.entered)) == ("expired", {"in_progress", "expired"})

    async def test_what_is_wrong_with_an_input(self, store: Store, clock: Moved) -> None:
        made = await store.create(batch())
        await store.add_items(made.id, items(1))
        errors = (LineError("invalid_json_line", "x", 7), LineError("empty_file", "y", param="p"))
        await store.fail(made.id, errors)
        failed = await store.get("t", "batch", made.id)
        assert (failed.status, failed.errors, failed.entered) == ("failed", errors, {"failed": 1_000_000})
        await store.begin(made.id, model="m")
        await store.add_items(made.id, items(1))
        assert (await store.get("t", "batch", made.id)).status == "failed"
        assert await store.lease("w", 1, 30) == []

    async def test_a_key_makes_one_batch(self, store: Store, clock: Moved) -> None:
        made = await asyncio.gather(*(store.create(batch(str(number)), key="k", digest="d") for number in range(100)))
        assert len({one.id for one in made}) == 1
        assert len(await store.list("t", "batch", limit=100)) == 1
        with pytest.raises(IdempotencyConflict):
            await store.create(batch("x"), key="k", digest="other")
        with pytest.raises(IdempotencyConflict):
            await store.find_by_key("t", "batch", "k", "other")
        assert await store.find_by_key("t", "batch", "k", "d") == made[0]
        assert [await store.find_by_key(*of, "d") for of in (("u", "batch", "k"), ("t", "analysis", "k"))] == [None] * 2
        assert (await store.create(batch("u", tenant="u"), key="k", digest="d")).id == "batch_u"
        clock.pass_(KEY_KEPT_S + 1)
        assert await store.find_by_key("t", "batch", "k", "d") is None
        await store.sweep()
        assert (await store.create(batch("x"), key="k", digest="other")).id == "batch_x"

    async def test_nobody_sees_what_is_anothers(self, store: Store, clock: Moved) -> None:
        made = await begun(store, batch())
        for ask in (store.get, store.cancel):
            with pytest.raises(ObjectNotFound):
                await ask("u", "batch", made.id)
            with pytest.raises(ObjectNotFound):
                await ask("t", "analysis", made.id)
        assert await store.list("u", "batch", limit=9) == []
        with pytest.raises(ObjectNotFound):
            await store.list("u", "batch", limit=9, after=made.id)
        assert (await store.get("t", "batch", made.id)).status == "in_progress"

    async def test_what_ended_long_ago_is_forgotten(self, store: Store, clock: Moved) -> None:
        await store.create(batch("job", kind="analysis"), [Item(0, "", b"{}")])
        (lease,) = await store.lease("w", 1, 30)
        await store.complete(lease, DONE)
        await store.create(batch("failed"))
        await store.fail("batch_failed", [LineError("empty_file", "x")])
        await store.create(batch("new"))
        clock.pass_(KEPT_S - 1)
        await store.sweep()
        assert await told(store, "batch_job") == [("", "200")]
        assert len(await store.list("t", "batch", limit=9)) == 2
        clock.pass_(1)
        await store.sweep()
        with pytest.raises(ObjectNotFound):
            await store.get("t", "analysis", "batch_job")
        assert await told(store, "batch_job") == []
        assert [one.id for one in await store.list("t", "batch", limit=9)] == ["batch_new"], "it has not ended"

    async def test_an_item_remembers_the_key_of_its_batch(self, store: Store, clock: Moved) -> None:
        made = await begun(store, batch(tenant="a/b:c%", key_id="key_1"), 1)
        (lease,) = await store.lease("w", 1, 30)
        assert (lease.key_id, lease.tenant, made.key_id) == ("key_1", "a/b:c%", "key_1")

    async def test_what_is_left_to_do_is_told_of_all_tenants(self, store: Store, clock: Moved) -> None:
        assert await store.backlog() == Backlog()
        await begun(store, batch("a", created_at=int(clock.wall()) - 100), 5)
        await begun(store, batch("b", tenant="u", created_at=int(clock.wall()) - 40), 2)
        await store.create(batch("c"))
        leases = await store.lease("w", 3, 30)
        left = await store.backlog()
        assert (left.batches, left.waiting, left.under_way) == (3, 4, 3)
        assert 100 <= left.oldest_s < 102, left.oldest_s
        for lease in leases:
            await store.complete(lease, DONE)
        for name in "ac":
            await store.cancel("t", "batch", f"batch_{name}")
        left = await store.backlog()
        assert left.under_way == 0
        assert left.waiting <= 2

    async def test_lists_newest_first(self, store: Store, clock: Moved) -> None:
        for name in "abc":
            await store.create(batch(name))
        assert [one.id for one in await store.list("t", "batch", limit=2)] == ["batch_c", "batch_b"]
        assert [one.id for one in await store.list("t", "batch", limit=2, after="batch_b")] == ["batch_a"]

    async def test_analyses_first_and_tenants_in_turns(self, store: Store, clock: Moved) -> None:
        await begun(store, batch("big"), 5)
        await begun(store, batch("small", tenant="u"), 2)
        job = batch("job", kind="analysis", endpoint="/analyze")
        assert (await store.create(job, [Item(0, "", b"{}")])).status == "in_progress"
        order = [(lease.batch_id, lease.item.index) for lease in await store.lease("w", 5, 30)]
        assert order[0] == ("batch_job", 0)
        # The job was of the tenant who has the big batch, too.
        assert order[1:] == [("batch_small", 0), ("batch_big", 0), ("batch_small", 1), ("batch_big", 1)]

    async def test_an_analysis_is_over_with_its_answer(self, store: Store, clock: Moved) -> None:
        await store.create(batch("job", kind="analysis"), [Item(0, "", b"{}")])
        (lease,) = await store.lease("w", 1, 30)
        await store.complete(lease, DONE)
        assert (await store.get("t", "analysis", "batch_job")).status == "completed"
        assert await told(store, "batch_job") == [("", "200")]
        assert await store.due("w", 30) is None

    async def test_a_claim_runs_out(self, store: Store, clock: Moved) -> None:
        await store.create(batch())
        assert await store.due("w", 30) is not None
        assert await store.due("w", 30) is not None, "the same worker goes on"
        assert await store.due("v", 30) is None
        clock.pass_(31)
        assert await store.due("v", 30) is not None

    async def test_one_with_which_a_worker_gets_nowhere_keeps_no_other_waiting(
        self, store: Store, clock: Moved
    ) -> None:
        await store.create(batch("stuck"))
        assert (first := await store.due("w", 30)) is not None
        await store.create(batch("next", tenant="other"))
        assert (second := await store.due("w", 30)) is not None
        assert (first.id, second.id) == ("batch_stuck", "batch_next")
        await store.begin("batch_next", model=None)
        assert (again := await store.due("w", 30)) is not None
        assert again.id == "batch_stuck"

    async def test_many_workers_share_and_nothing_is_done_twice(self, store: Store, clock: Moved) -> None:
        made = await begun(store, batch(), 60)
        done: list[str] = []

        async def work(name: str) -> None:
            while leases := await store.lease(name, 4, 30):
                for lease in leases:
                    assert await store.complete(lease, DONE)
                    done.append(lease.item.custom_id)

        await asyncio.gather(*(work(f"w{number}") for number in range(5)))
        assert sorted(done) == sorted(item.custom_id for item in items(60))
        assert (await store.get("t", "batch", made.id)).counts.completed == 60
