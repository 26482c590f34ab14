"""Redis as this server uses it: scripts that are whole or not done, and answers within a second, whatever it does.

What is told to be kept is as safe as Redis makes it: with `appendonly yes` and `appendfsync always` it is on the disk
before Redis answers. `start` says what is missing. Only strings travel here: JSON, MessagePack, bytes; nothing that
would be run when it is read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from importlib.resources import files as package_files
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

from sightline.errors import InvalidRequest, StorageFull, StorageUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")
Text = str | bytes | int | float
PREFIX: Final = "sightline:"
"""Of every key, but RQ's own."""
OLDEST: Final = 7
"""Redis 7.0 has flags for scripts, and so steps that go on where memory is full."""
_SOON_S: Final = 0.8
"""For Redis to answer somebody who waits for it."""
_LATER_S: Final = 20.0
"""For what nobody waits for: a thousand lines, synced."""
_CONNECTIONS: Final = 32
_SCRIPTS: Final = {"queue": ("queue.lua", "queue_steps.lua"), "files": ("files.lua",)}
"""Files beside this one, each script of which is one or more in a row."""


def describe(url: str) -> str:
    """Where it is, for people: without a password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def encode(tenant: str) -> str:
    """As it stands in keys: no colon and no slash is left."""
    return quote(tenant, safe="")


class Connection:
    """Life: made -> `start` -> calls, from any task of one event loop -> `close`. All calls raise `StorageUnavailable`
    or `StorageFull`, and are done wholly or not at all; one whose answer was lost may have been done."""

    def __init__(self, url: str) -> None:
        """`redis://`, `rediss://` or `unix://`, as redis-py takes it. Raises `InvalidRequest`."""
        try:
            from redis import asyncio as redis
            from redis.backoff import NoBackoff
            from redis.exceptions import ConnectionError as Lost

            # Once more, because a connection of before Redis was started anew is only found broken when it is used;
            # uvloop says so with a RuntimeError.
            retry = redis.retry.Retry(NoBackoff(), 1, (Lost, RuntimeError))  # type: ignore[arg-type]
            pool = redis.BlockingConnectionPool.from_url(
                url,
                max_connections=_CONNECTIONS,
                timeout=_LATER_S,
                socket_connect_timeout=_SOON_S,
                socket_timeout=_LATER_S,
                retry=retry,
            )
        except ImportError:
            raise InvalidRequest("For jobs in Redis: pip install 'sightline[redis]'.", param="jobs") from None
        except ValueError:
            raise InvalidRequest(
                "jobs must be redis://HOST:PORT/DB, or rediss:// with TLS; special characters of a password are "
                "written as %XX.",
                param="jobs",
            ) from None
        self._url = url
        self._pool = pool
        self._redis: Any = redis.Redis(connection_pool=pool)
        self._told = ""
        """Why it could not be reached, if it could not when it was last asked."""
        self._scripts: dict[tuple[str, bool], Any] = {}

    async def start(self) -> None:
        """Looks at what Redis is, and tells in the log what it does not keep. Raises `StorageUnavailable` for one that
        is too old, or would forget what it has kept."""
        server, persistence, memory = [
            await self._within(_SOON_S, self._redis.info(part)) for part in ("server", "persistence", "memory")
        ]
        version = str(server["redis_version"])
        if int(version.partition(".")[0]) < OLDEST:
            raise StorageUnavailable(f"Jobs need Redis {OLDEST} or newer; this one is {version}.")
        if int(memory.get("maxmemory", 0)) and memory.get("maxmemory_policy") != "noeviction":
            raise StorageUnavailable(
                "This Redis throws keys away when its memory is full, and with them jobs. Set maxmemory-policy "
                "noeviction, or give jobs a Redis of their own."
            )
        if not persistence.get("aof_enabled"):
            log.warning("%s keeps no append-only file: jobs are lost with it. Set appendonly yes.", describe(self._url))
        elif await self._synced() not in ("always", None):
            log.warning(
                "%s may lose the last second of jobs when its machine fails. Set appendfsync always.",
                describe(self._url),
            )

    async def _synced(self) -> str | None:
        """None where Redis does not tell, as hosted ones do not."""
        from redis.exceptions import ResponseError

        async def ask() -> str | None:
            try:
                return str((await self._redis.config_get("appendfsync")).get("appendfsync"))
            except ResponseError:
                return None

        return await self._within(_SOON_S, ask())

    async def close(self) -> None:
        """Idempotent."""
        await self._pool.disconnect()

    async def run(self, script: str, *args: Text, makes_room: bool = False, soon: bool = True) -> Any:
        """What the script (`queue` or `files`) replies. With `makes_room` it goes on where Redis has
        used up its memory: what ends work must not be kept from it."""
        return await self._within(_SOON_S if soon else _LATER_S, self._script(script, makes_room)(args=args))

    async def call(self, *command: Text, soon: bool = True) -> Any:
        """A command of Redis."""
        return await self._within(_SOON_S if soon else _LATER_S, self._redis.execute_command(*command))

    async def calls(self, commands: Sequence[Sequence[Text]], *, soon: bool = True) -> list[Any]:
        """Several, with one message."""
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return list(await self._within(_SOON_S if soon else _LATER_S, pipeline.execute()))

    def _script(self, name: str, makes_room: bool) -> Any:
        found = self._scripts.get((name, makes_room))
        if found is None:
            source = "".join((package_files("sightline.jobs") / file).read_text("utf-8") for file in _SCRIPTS[name])
            flags = " flags=allow-oom" if makes_room else ""
            found = self._scripts[name, makes_room] = self._redis.register_script(f"#!lua{flags}\n{source}")
        return found

    def _tell(self, why: str) -> None:
        """The operator, once."""
        if why != self._told:
            self._told = why
            log.warning("%s: %s", describe(self._url), why)

    async def _within(self, seconds: float, call: Coroutine[Any, Any, T]) -> T:
        """What it returns; Redis's errors as ours."""
        from redis import exceptions

        # A task that is left to itself, and no `asyncio.timeout`: redis-py's own time limits may swallow the
        # cancellation that comes at the same moment, and then go on for seconds.
        task = asyncio.ensure_future(call)
        try:
            done, _ = await asyncio.wait({task}, timeout=seconds)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not done:
            task.cancel()
            task.add_done_callback(lambda left: left.cancelled() or left.exception())
            raise _unavailable()
        try:
            result = task.result()
            self._told = ""
            return result
        except exceptions.OutOfMemoryError:
            raise _full() from None
        except exceptions.AuthenticationError:
            log.error("%s refuses the user or the password", describe(self._url))
            raise _unavailable() from None
        except (exceptions.ConnectionError, exceptions.TimeoutError, TimeoutError, OSError) as error:
            self._tell(str(error)[:200])
            raise _unavailable() from None
        except RuntimeError as error:
            if not str(error).startswith(_CLOSED):
                raise
            raise _unavailable() from None
        except exceptions.ResponseError as error:
            # A replica, a disk that is full, a user without the right: the log says which, clients are told that it is
            # not their fault.
            if str(error).startswith(("OOM", "ERR OOM")):
                raise _full() from None
            if not str(error).startswith(_OF_THE_OPERATOR):
                raise
            log.error("Redis refuses: %s", str(error)[:200])
            raise _unavailable() from None


_CLOSED: Final = "unable to perform operation on <TCPTransport closed=True"
_OF_THE_OPERATOR: Final = ("MISCONF", "READONLY", "NOAUTH", "WRONGPASS", "NOPERM", "NOREPLICAS", "MASTERDOWN", "BUSY")


def _full() -> StorageFull:
    return StorageFull("The server's queue is full; nothing was kept. Try again when its operator has made room.")


def _unavailable() -> StorageUnavailable:
    return StorageUnavailable("The server cannot reach its queue now; nothing was kept. Try again soon.")
