"""`sightline worker`: does what waits in a queue that several machines share, with its own engines or on a server.

Batches come from Redis, and their answers go there: no socket, but for metrics where they are asked for. SIGTERM gives
back at once what is under way, to be done by another worker, as if it had never been tried.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import msgspec

from sightline import logs, tracing
from sightline.api.app import create_app, create_worker_app
from sightline.api.elsewhere import Elsewhere
from sightline.api.lifespan import running
from sightline.api.work import Work
from sightline.cli.models import add_model_arguments, to_model_config
from sightline.cli.serve import listen
from sightline.config import BatchLimits, Settings, data_dir_of, environment
from sightline.configfile import load
from sightline.errors import InvalidRequest
from sightline.jobs.redis_connection import describe
from sightline.server import Endpoint, Server
from sightline.service import Service

_SCRAPE_S = 1.0
"""For one that is being answered when the worker is told to end."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="a configuration file: sightline.yaml")
    parser.add_argument(
        "--jobs",
        default=environment("JOBS"),
        metavar="URL",
        help="where the work is: redis://HOST:PORT/DB (default: the file's `jobs`)",
    )
    parser.add_argument(
        "--server",
        metavar="URL",
        help="ask this server, such as http://10.0.0.5:8000, and run no engine here; the key is taken from "
        "SIGHTLINE_API_KEY, and is an admin's: lines run by the rights of the keys that their batches came with",
    )
    parser.add_argument(
        "--concurrency", type=int, metavar="N", help="lines asked at once (default: batches.max_concurrent, or 16)"
    )
    parser.add_argument(
        "--metrics",
        metavar="HOST:PORT",
        help="answer /metrics, /health and /ready there, without a key, such as 127.0.0.1:9091 (default: nowhere)",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--data-dir",
        default=environment("DATA_DIR"),
        metavar="DIR",
        help="where the bytes of files are if files.url names no other place (default: below the user's state "
        "directory, by the queue)",
    )
    parser.add_argument(
        "--keys",
        default=environment("KEYS"),
        metavar="FILE",
        help="where the servers' API keys are kept, by whose rights lines run (default: keys.db in the data directory)",
    )
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--log-format", choices=["json", "human"])
    given = ("model", "engine", "name", "option")
    parser.set_defaults(model_defaults={name: parser.get_default(name) for name in given})


def run(args: argparse.Namespace) -> int:
    settings = to_settings(args)
    logs.set_up(settings.log_level, settings.log_format)
    tracing.verify(settings.tracing)
    where = describe(settings.jobs or "")
    is_ready = asyncio.Event()
    endpoints = _to_endpoints(args.metrics, settings, is_ready)
    doing = _asking(settings, args.server) if args.server else _serving(settings)
    with asyncio.Runner() as runner:
        runner.run(_until_told(doing, endpoints, is_ready, f"Sightline works on {where}"))
    return 0


def _to_endpoints(address: str | None, settings: Settings, is_ready: asyncio.Event) -> list[Endpoint]:
    """Raises `InvalidRequest` for what is no address, or cannot be had."""
    if address is None:
        return []
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isascii() and port.isdecimal() and int(port) < 2**16):
        raise InvalidRequest(f"--metrics takes HOST:PORT, such as 127.0.0.1:9091, not {address!r}.", param="metrics")
    listener: socket.socket = listen(host, int(port), "--metrics")
    print(f"Metrics: http://{host}:{listener.getsockname()[1]}/metrics", flush=True)
    return [Endpoint(create_worker_app(is_ready.is_set, settings, host), [listener])]


def to_settings(args: argparse.Namespace) -> Settings:
    """Raises `InvalidRequest` without a queue that others share."""
    given = [name for name, default in args.model_defaults.items() if getattr(args, name) != default]
    if given and (args.file or args.server):
        raise InvalidRequest(
            f"--{given[0]} is about an engine of this worker; {args.file or args.server} names what answers.",
            param=given[0],
        )
    base = load(args.file) if args.file else Settings(models=() if args.server else (to_model_config(args),))
    jobs = args.jobs or base.jobs
    if jobs is None:
        raise InvalidRequest(
            "A worker needs a queue that it shares with servers: --jobs redis://HOST:PORT/DB, or `jobs` in the file. "
            "Without Redis the server does the work itself.",
            param="jobs",
        )
    if args.concurrency is not None and args.concurrency < 1:
        raise InvalidRequest("--concurrency is 1 or more.", param="concurrency")
    at_once = args.concurrency or base.batches.max_concurrent or BatchLimits().max_concurrent
    settings = msgspec.structs.replace(
        base,
        jobs=jobs,
        batches=msgspec.structs.replace(base.batches, max_concurrent=at_once),
        data_dir=args.data_dir or base.data_dir,
        access=base.access if args.keys is None else msgspec.structs.replace(base.access, file=args.keys),
        log_level=args.log_level or base.log_level,
        log_format=args.log_format or base.log_format,
    )
    return msgspec.structs.replace(settings, data_dir=str(data_dir_of(settings)))


def _serving(settings: Settings) -> AbstractAsyncContextManager[None]:
    """The server without a socket: its engines are loaded before it takes work."""
    return running(create_app(Service(settings), settings, wait=True))


@asynccontextmanager
async def _asking(settings: Settings, server: str) -> AsyncIterator[None]:
    work = Work(settings)
    elsewhere = Elsewhere(
        server,
        environment("API_KEY"),
        work.read_picture,
        at_once=settings.batches.max_concurrent,
        timeout_s=settings.request_timeout_s,
        picture_bytes=settings.images.max_bytes,
    )
    await work.start(elsewhere.execute)
    try:
        yield
    finally:
        await work.close()
        await elsewhere.close()


async def _until_told(
    doing: AbstractAsyncContextManager[None], endpoints: list[Endpoint], is_ready: asyncio.Event, told: str
) -> None:
    """Until SIGTERM or SIGINT, which the server takes: probes are answered while models load."""
    server = Server(endpoints, drain_s=_SCRAPE_S)
    answering = asyncio.create_task(server.serve())
    try:
        async with doing:
            is_ready.set()
            print(told, flush=True)
            await asyncio.shield(answering)
            is_ready.clear()
    finally:
        server.stop()
        await answering
