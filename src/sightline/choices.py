"""A request's choices on one engine: run, told in the order in which they come, tried once more where that is right."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from sightline import metrics, tracing
from sightline.access.permit import Spending
from sightline.admission import Ticket
from sightline.attempts import Way, before_retry
from sightline.engine_request import likeness
from sightline.errors import DeadlineExceeded, EngineError, EngineFailed, SightlineError
from sightline.items import ChoiceEvent, Item, Prepared
from sightline.models import ServedModel
from sightline.routing import Deadline, Pass
from sightline.telling import Tell, taken
from sightline.types import ChatRequest, EngineRequest, Event, Finish, TokenCount

log = logging.getLogger(__name__)

_LAST_MOMENT_S = 0.2
"""Of a request's time, in which an engine that knows of it may give up a little earlier than we do."""


class Stream(Way):
    """Tells events to whoever asked, `Prepared` before the first."""

    def __init__(self, request: ChatRequest, deadline: Deadline, tell: Tell[Item]) -> None:
        super().__init__(request.request_id, deadline, likeness(request))
        self.prepared: Prepared | None = None
        self.whole = request.whole
        self._tell = tell

    def put(self, index: int, event: Event) -> Awaitable[None] | None:
        """As `Tell`."""
        item = ChoiceEvent(index, event)
        return self._tell(item) if self.begun else self._begin(item)

    async def _begin(self, item: ChoiceEvent) -> None:
        self.begun = True
        assert self.prepared is not None
        await taken(self._tell(replace(self.prepared, path=tuple(self.path))))
        await taken(self._tell(item))


@dataclass(slots=True)
class Run:
    """A request's choices on one engine."""

    model: ServedModel
    ticket: Ticket
    allowed: Pass
    stream: Stream
    token_count: TokenCount
    started: float
    spent: Spending
    dead: set[int] = field(default_factory=set)
    """Processes of the engine that ended under it, by their ids."""

    def tell(self, index: int, event: Event) -> Awaitable[None] | None:
        """As `Tell`."""
        self.spent.see(index, event)
        return self.stream.put(index, event)


async def run_choices(run: Run, requests: Sequence[EngineRequest]) -> None:
    """Every choice to its end. Raises what the first that fails does, which ends the others."""
    await _together([_run_choice(run, request, index) for index, request in enumerate(requests)])


async def _run_choice(run: Run, request: EngineRequest, index: int) -> None:
    """Runs one choice; once more if the engine broke before the client was told anything, the budget permitting."""
    model, stream = run.model, run.stream
    for retry in itertools.count():
        begun = False
        held: list[Event] = []
        """Of a whole answer, until it is one."""
        try:
            observed = metrics.Observed(model.name, started=run.started)
            asked = replace(request, timeout_s=stream.deadline.left_s())
            async with aclosing(model.engine.generate(asked)) as events:
                async for event in events:
                    observed.see(event, is_first=not begun)
                    if not begun:
                        begun = True
                        run.allowed.succeeded()
                        tracing.first_event()
                    if isinstance(event, Finish):
                        tracing.finished(event, model.name)
                        _verify_count(event, run.token_count, model.name)
                        run.ticket.answered(event.usage.completion_tokens)
                    if stream.whole:
                        held.append(event)
                    elif (taking := run.tell(index, event)) is not None:
                        await taking
            for event in held:
                await taken(run.tell(index, event))
            return
        except EngineError as error:
            if error.died is not None:
                run.dead.add(error.died)
            await before_retry(error, retry, model, run.allowed, stream, begun=begun and not stream.whole)
        except DeadlineExceeded:
            if begun or stream.deadline.left_s() < _LAST_MOMENT_S:
                raise
            # A limit of the engine's own, which is not the request's: another model has time for it.
            run.allowed.failed(stream.alike)
            raise EngineFailed(f"The model {model.name!r} took longer than it is given.") from None


async def _together(choices: Sequence[Coroutine[object, object, None]]) -> None:
    """The first that fails ends the others. One alone, as most requests have, needs no task of its own."""
    if len(choices) == 1:
        await choices[0]
        return

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            for choice in choices:
                tasks.create_task(choice)

    # In a task of its own: a group that fails leaves its task marked as cancelled (Python 3.11 and 3.12), and then the
    # deadline of the next try would not be told from a client that left.
    try:
        await asyncio.create_task(group())
    except BaseExceptionGroup as failed:
        raise _first(failed) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended a group of choices: ours before others, the first before later ones."""
    errors = list(_leaves(group))
    return next((e for e in errors if isinstance(e, SightlineError)), errors[0])


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _verify_count(finish: Finish, planned: TokenCount, model: str) -> None:
    """What a client was told of its pictures must be what the engine made of them."""
    if planned.exact and finish.usage.image_tokens != planned.image_tokens:
        metrics.IMAGE_TOKEN_MISMATCHES.labels(model).inc()
        log.error(
            "model %s: pictures of %s tokens by its budget were %s to its engine; one of them has a bug",
            model, planned.image_tokens, finish.usage.image_tokens,
        )  # fmt: skip
