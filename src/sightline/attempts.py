"""The way of one request through a model and those that stand in for it: where it is tried, again or next.

`routing.py` decides; here it is done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sightline import metrics, tracing
from sightline.errors import EngineError, SightlineError
from sightline.models import ServedModel
from sightline.routing import Deadline, Pass, backoff_s, falls_back, passes_over

log = logging.getLogger(__name__)

T = TypeVar("T")

_RETRIES = 1
"""Of a choice, on the same engine."""
_REPLACED = 4
"""The same where what had it ended and is replaced. More would let a request that is at fault end one after another."""


@dataclass(slots=True)
class Way:
    """What a request has been through."""

    request_id: str
    deadline: Deadline
    alike: Hashable
    """Equal for requests that are alike."""
    path: list[str] = field(default_factory=list)
    """Replicas tried."""
    begun: bool = False
    """The client has been told something: nothing is tried again."""


async def in_turn(
    models: Sequence[ServedModel], way: Way, attempt: Callable[[ServedModel], Coroutine[Any, Any, T]]
) -> T:
    """Tries the model that was asked for, which is the first, then the others, until one has begun to answer.

    Raises what the first one raised, when none of the others could do better.
    """
    refusal: SightlineError | None = None
    for model in models:
        way.path.append(model.replica)
        try:
            return await _try(model, attempt)
        except SightlineError as error:
            goes_on = falls_back(error) if model is models[0] else passes_over(error)
            if way.begun or not goes_on or _is_cancelled():
                raise
            refusal = refusal or error
            metrics.FALLBACKS.labels(model.name).inc()
            log.warning("request %s: model %s: %s", way.request_id, model.name, error)
    assert refusal is not None
    raise refusal


async def _try(model: ServedModel, attempt: Callable[[ServedModel], Coroutine[Any, Any, T]]) -> T:
    error: BaseException | None = None
    try:
        with tracing.span(f"try {model.replica}", sightline__model=model.name):
            return await attempt(model)
    except BaseException as caught:
        error = caught
        raise
    finally:
        metrics.TRIES.labels(model.name, metrics.outcome(error)).inc()


async def before_retry(
    error: EngineError, retry: int, model: ServedModel, allowed: Pass, way: Way, *, begun: bool = False
) -> None:
    """Tells the breaker of a failed try; returns when another may be made, raises the error where none may.
    `retry`: its number, from 0."""
    if error.died is None and model.state == "ready":
        # Of processes that die the supervisor keeps count; the breaker is for engines that are up and fail.
        allowed.failed(way.alike)
    again = not begun and retry < (_REPLACED if error.replaced else _RETRIES) and error.retryable and allowed.valid
    # Where its process only dies, it has been given up for now.
    again = again and model.state != "failed" and not model.is_closed
    # A process that dies takes all its requests along at once. They have their second try beside the budget, which is
    # for engines that fail one request after the other; how often processes may die is the supervisor's to say.
    if not again or (error.died is None and not model.retries.spend()):
        raise error
    log.warning("model %s: %s; request %s is tried once more", model.name, error, way.request_id)
    metrics.RETRIES.labels(model.name).inc()
    await asyncio.sleep(backoff_s(retry))
    way.path.append(model.replica)


def _is_cancelled() -> bool:
    """Whether this task is to end, though an error came in between."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
