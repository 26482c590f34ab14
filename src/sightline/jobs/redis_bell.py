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
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from sightline.errors import InvalidRequest
from sightline.jobs import Kind

if TYPE_CHECKING:
    from rq import Queue

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
    """Life: made -> `ring` and `listen`, from one event loop -> `close`. Raises nothing while Redis is away: then
    nobody is woken."""

    def __init__(self, url: str) -> None:
        """Raises `InvalidRequest` without RQ."""
        try:
            from redis import Redis
            from rq import Queue
            from rq.serializers import JSONSerializer
        except ImportError:
            raise InvalidRequest("For jobs in Redis: pip install 'sightline[redis]'.", param="jobs") from None
        self._redis = Redis.from_url(url, socket_connect_timeout=_CONNECT_S, socket_timeout=_LISTEN_S + _CONNECT_S)
        self._queues: dict[Kind, Queue] = {
            kind: Queue(name, connection=self._redis, serializer=JSONSerializer) for kind, name in QUEUES.items()
        }
        self._ringer = ThreadPoolExecutor(1, "sightline-bell")
        self._listener = ThreadPoolExecutor(1, "sightline-bell")

    def ring(self, kind: Kind, item_id: str) -> None:
        """Somebody who has nothing to do will look. Waits for nothing."""
        self._ringer.submit(self._enqueue, kind, item_id)

    def _enqueue(self, kind: Kind, item_id: str) -> None:
        from redis.exceptions import RedisError

        queue = self._queues[kind]
        try:
            if queue.count < _MOST:
                queue.enqueue_call(_FUNCTION, args=(item_id,), ttl=_KEPT_S, result_ttl=0, failure_ttl=0)
        except RedisError as error:
            log.debug("no worker is woken: %s", error)

    async def listen(self) -> bool:
        """Whether somebody has rung; after about a second, that nobody has."""
        loop = asyncio.get_running_loop()
        heard = await loop.run_in_executor(self._listener, self._take)
        if heard is None:
            await asyncio.sleep(_AGAIN_S)
        return bool(heard)

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
        except (DequeueTimeout, Silent):
            return False
        except RedisError:
            return None
        except Exception as error:  # a job that is not ours: whatever it is, it is not run
            log.warning("something else is in RQ's queue %s and was thrown away", getattr(error, "queue", ""))
            return True
        if taken is not None:
            taken[0].delete(remove_from_queue=False)
        return True

    async def close(self) -> None:
        """Idempotent. Whoever listens is let go."""
        self._ringer.shutdown(wait=False, cancel_futures=True)
        self._listener.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._redis.close)
