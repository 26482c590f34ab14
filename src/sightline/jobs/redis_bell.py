"""What RQ does here: it wakes workers. A job of RQ's says "there is an item to do", and whoever takes it looks.

RQ's own worker runs a function per job, in a process that is forked for it and ends with it; an item of ours wants an
event loop, an engine that is loaded, a slot among others, a lease and a fence, and its tenant's turn. So a job carries
nothing but the id of what is new, as JSON (never pickle, which runs what it reads), and what is done next is the
queue's decision, not that of RQ's order. A job that is lost, doubled, or taken by somebody who dies loses nothing:
workers also look by themselves every second. Analyses have a queue of their own, which is emptied first. `rq info` and
RQ's dashboards show both.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from sightline.errors import InvalidRequest
from sightline.jobs import Kind

log = logging.getLogger(__name__)

QUEUES: Final[dict[Kind, str]] = {"analysis": "sightline-analyses", "batch": "sightline-batches"}
_FUNCTION: Final = "sightline.jobs.redis_bell.look"
_KEPT_S: Final = 60
"""How long a job of RQ's waits for somebody."""
_MOST: Final = 100
"""Jobs that wait at once; the next worker that looks sees everything anyway."""
_CONNECT_S: Final = 0.8
_LISTEN_S: Final = 1
_AGAIN_S: Final = 1.0


def look(item_id: str) -> None:
    """What RQ's own worker would run, should somebody start one on these queues: it answers nothing."""
    log.warning("RQ's worker has no engine; `sightline worker` does what %s is about", item_id)


class Bell:
    """`ring` and `listen`, until `close`. Neither raises while Redis is away: nobody is woken then.

    RQ's calls block, so each is made in a thread of its own that nothing waits for: a process may end meanwhile.
    """

    def __init__(self, url: str) -> None:
        """Raises `InvalidRequest` without RQ."""
        try:
            from redis import Redis
            from rq import Queue
            from rq.serializers import JSONSerializer
        except ImportError:
            raise InvalidRequest("For jobs in Redis: pip install 'sightline[redis]'.", param="jobs") from None
        self._is_closed = False
        self._redis = Redis.from_url(url, socket_connect_timeout=_CONNECT_S, socket_timeout=_LISTEN_S + _CONNECT_S)
        self._queues: dict[Kind, Queue] = {
            kind: Queue(name, connection=self._redis, serializer=JSONSerializer) for kind, name in QUEUES.items()
        }

    def ring(self, kind: Kind, item_id: str) -> None:
        """Somebody who has nothing to do will look. Waits for nothing."""
        _in_thread(lambda: self._enqueue(kind, item_id))

    async def listen(self) -> bool:
        """Whether somebody has rung; after about a second, that nobody has."""
        heard = await asyncio.wrap_future(_in_thread(self._take))
        if heard is None:
            await asyncio.sleep(_AGAIN_S)
        return bool(heard)

    async def close(self) -> None:
        """Whoever listens is let go. Idempotent."""
        self._is_closed = True
        await asyncio.to_thread(self._redis.close)

    def _enqueue(self, kind: Kind, item_id: str) -> None:
        from redis.exceptions import RedisError

        queue = self._queues[kind]
        try:
            if queue.count < _MOST:
                queue.enqueue_call(_FUNCTION, args=(item_id,), ttl=_KEPT_S, result_ttl=0, failure_ttl=0)
        except RedisError as error:
            log.debug("no worker is woken: %s", error)

    def _take(self) -> bool | None:
        """None: Redis is away."""
        from redis.exceptions import RedisError
        from redis.exceptions import TimeoutError as Silent
        from rq import Queue
        from rq.exceptions import DequeueTimeout
        from rq.serializers import JSONSerializer

        try:
            taken: Any = Queue.dequeue_any(
                list(self._queues.values()), timeout=_LISTEN_S, connection=self._redis, serializer=JSONSerializer
            )
            if taken is not None:
                taken[0].delete(remove_from_queue=False)
        except (DequeueTimeout, Silent):
            return False
        except RedisError:
            return None
        except Exception:  # whatever somebody else has put there: it was never run
            if self._is_closed:  # the connection was taken away from under this call
                return None
            log.warning("something that is no job of ours was in RQ's queues %s", ", ".join(QUEUES.values()))
        return True


def _in_thread(work: Callable[[], Any]) -> Future[Any]:
    """A future of what it returns."""
    future: Future[Any] = Future()

    def run() -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

    threading.Thread(target=run, name="sightline-bell", daemon=True).start()
    return future
