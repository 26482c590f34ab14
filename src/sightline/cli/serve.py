"""`sightline serve`: models behind the OpenAI API. What a flag says goes before what the configuration file says."""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from starlette.types import ASGIApp

from sightline import logs, tracing
from sightline.access.gate import Gate, keys_path
from sightline.api.app import create_admin_app, create_app
from sightline.cli.models import (
    PORT,
    add_model_arguments,
    add_picture_size_arguments,
    to_model_config,
)
from sightline.config import (
    MIB,
    CorsPolicy,
    FetchPolicy,
    ImageLimits,
    PictureSize,
    Settings,
    Tls,
    data_dir_of,
    environment,
    is_loopback,
)
from sightline.configfile import load
from sightline.errors import InvalidRequest
from sightline.frontends import Supervisor
from sightline.server import Drain, Endpoint, serve
from sightline.server.tls import Certificate
from sightline.service import Service
from sightline.ui.application import verify_installed
from sightline.ui.mount import to_server_page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("file", nargs="?", type=Path, metavar="FILE", help="a configuration file: sightline.yaml")
    where.add_argument("-c", "--config", type=Path, metavar="FILE", help="the same")
    parser.add_argument("--host", default=environment("HOST"), help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=PORT, default=environment("PORT"), help="0: any free one (default: 8000)")
    parser.add_argument(
        "--workers",
        type=int,
        default=environment("WORKERS"),
        metavar="N",
        help="processes that answer HTTP, for as many cores; they share models, limits and metrics (default: 1)",
    )
    add_model_arguments(parser)
    parser.set_defaults(model_defaults={name: parser.get_default(name) for name in _OF_ONE_MODEL})
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a Host header to answer, beside localhost's",
    )
    parser.add_argument(
        "--open-to-anyone",
        action="store_true",
        help="listen on an address that other machines reach although no key protects the server",
    )
    parser.add_argument(
        "--tls-certificate",
        default=environment("TLS_CERTIFICATE"),
        metavar="FILE",
        help="serve HTTPS with this certificate, and those up to its authority (PEM); read again when it is renewed",
    )
    parser.add_argument(
        "--tls-key", default=environment("TLS_KEY"), metavar="FILE", help="its key (PEM, without a password)"
    )
    parser.add_argument(
        "--fetch",
        default=environment("FETCH"),
        metavar="off|any-public|HOST[,HOST...]",
        help="whose pictures clients may name by URL: nobody's; those of any host at public addresses; those of these "
        "hosts (cdn.example.com, *.example.com, localhost:9000)",
    )
    parser.add_argument(
        "--fetch-network",
        action="append",
        default=[],
        metavar="CIDR",
        help="a network of private addresses that those hosts may be in, such as 10.1.0.0/16",
    )
    parser.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="web pages that may use the server from a browser, beside those of the file, such as "
        "https://app.example.com or http://localhost:5173; * for any (default: none)",
    )
    add_picture_size_arguments(parser, "image-", "to any model")
    parser.set_defaults(image_detail=None)
    parser.add_argument(
        "--image-cache-mib",
        type=int,
        metavar="N",
        help="MiB of decoded pictures kept for requests that send the same file again; 0: none "
        f"(default: {ImageLimits().cache_bytes // MIB})",
    )
    parser.add_argument(
        "--data-dir",
        default=environment("DATA_DIR"),
        metavar="DIR",
        help="where files, batches and their answers are kept (default: below the user's state directory, by the port)",
    )
    parser.add_argument(
        "--jobs",
        default=environment("JOBS"),
        metavar="URL",
        help="where batches and analyses wait: redis://HOST:PORT/DB, shared with other servers and `sightline worker` "
        "(default: in the data directory)",
    )
    parser.add_argument(
        "--keys",
        default=environment("KEYS"),
        metavar="FILE",
        help="where `sightline keys` keeps the API keys (default: keys.db in the data directory)",
    )
    parser.add_argument("--ui", action="store_true", help="a page at /ui to chat with the models in a browser")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"])
    parser.add_argument(
        "--log-format",
        choices=["json", "human"],
        help="default: for people where the log goes to a terminal, else a line of JSON for each record",
    )


_OF_ONE_MODEL = (
    "model", "engine", "python", "name", "option", "limit_mm_per_prompt", "detail", "max_pixels", "min_pixels",
)  # fmt: skip
"""Arguments that say what a configuration file says of each model."""
_SWITCH_S = 0.0005
"""How long a thread that parses or hashes keeps the interpreter while the event loop waits for it; the loop waits after
each of its system calls, and Python's own 5 ms would add up."""


def run(args: argparse.Namespace) -> int:
    settings = to_settings(args)
    sys.setswitchinterval(_SWITCH_S)
    logs.set_up(settings.log_level, settings.log_format)
    tracing.verify(settings.tracing)
    certificate = None if settings.tls is None else Certificate(settings.tls)
    Gate(settings.access, keys_path(with_data_dir(settings)))  # what is wrong with its keys is told before all else
    listener = listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    models = ", ".join(model.name for model in settings.models)
    scheme = "http" if certificate is None else "https"
    print(f"Sightline serves {models} on {scheme}://{shown}:{port}/v1", flush=True)
    if settings.ui:
        print(f"A page to chat with them: {scheme}://{shown}:{port}/ui", flush=True)
    settings = with_data_dir(settings)
    if settings.workers > 1:
        if settings.ui:  # which is in another process, that would be started again and again
            verify_installed()
        return _run_workers(args, settings, [listener, *_listen_for_admins(settings, certificate)])
    service, gate = Service(settings), Gate(settings.access, keys_path(settings))
    app, drain = _to_app(service, settings, gate)
    endpoints = [Endpoint(app, [listener], certificate), *_to_admin(service, settings, gate, certificate)]
    serve(endpoints, limits=settings.http, drain=drain, drain_s=settings.drain_s)
    return 0


def _to_admin(service: Service, settings: Settings, gate: Gate, certificate: Certificate | None) -> Iterator[Endpoint]:
    """What answers on the listener for admins, where there is one. On loopback it is plain HTTP."""
    for listener in _listen_for_admins(settings, certificate):
        assert settings.admin is not None
        own = None if is_loopback(settings.admin.host) else certificate
        yield Endpoint(create_admin_app(service, settings, gate), [listener], own)


def _listen_for_admins(settings: Settings, certificate: Certificate | None) -> Iterator[socket.socket]:
    if settings.admin is not None:
        host = settings.admin.host
        listener = listen(host, settings.admin.port)
        scheme = "http" if certificate is None or is_loopback(host) else "https"
        print(f"Metrics and control: {scheme}://{host}:{listener.getsockname()[1]}/metrics and /admin", flush=True)
        yield listener


def _to_app(service: Service, settings: Settings, gate: Gate) -> tuple[ASGIApp, Drain]:
    """The application, and what is done when it is told to stop."""
    if not settings.ui:
        return create_app(service, settings, gate=gate), service.drain
    page = to_server_page(service, settings, gate)

    async def drain() -> None:
        page.end()
        await service.drain()

    return page.app, drain


def _run_workers(args: argparse.Namespace, settings: Settings, listeners: Sequence[socket.socket]) -> int:
    """Every process uses the same directory, a temporary one too."""
    with contextlib.ExitStack() as stack:
        where = settings.data_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="sightline-"))

        def settled(given: Settings) -> Settings:
            return msgspec.structs.replace(given, data_dir=where)

        Supervisor(settled(settings), listeners, lambda: settled(to_settings(args))).run()
    return 0


def _to_workers(count: int) -> int:
    """Raises `InvalidRequest`."""
    if not 1 <= count <= 64:
        raise InvalidRequest(f"--workers takes a number of processes from 1 to 64, not {count}.", param="workers")
    return count


def to_settings(args: argparse.Namespace) -> Settings:
    """Raises `InvalidRequest` for a file with problems, and for a bind that would leave the server open to others."""
    base = _to_base(args)
    host = args.host or base.host
    named = bool(args.allowed_host) or base.allowed_hosts != Settings().allowed_hosts
    networks = (*base.fetch.allow_networks, *args.fetch_network)
    fetch = (
        msgspec.structs.replace(base.fetch, allow_networks=networks)
        if args.fetch is None
        else _to_fetch_policy(args.fetch, args.fetch_network)
    )
    images = base.images
    if args.image_cache_mib is not None:
        images = msgspec.structs.replace(images, cache_bytes=max(0, args.image_cache_mib) * MIB)
    settings = msgspec.structs.replace(
        base,
        host=host,
        port=base.port if args.port is None else args.port,
        workers=base.workers if args.workers is None else _to_workers(args.workers),
        allowed_hosts=(*base.allowed_hosts, *args.allowed_host) if is_loopback(host) or named else ("*",),
        images=images,
        picture_size=_to_picture_size(args, base.picture_size),
        fetch=fetch,
        tls=_to_tls(args, base.tls),
        cors=CorsPolicy(origins=(*base.cors.origins, *args.cors_origin)),
        ui=args.ui or base.ui,
        log_level=args.log_level or base.log_level,
        log_format=args.log_format or base.log_format,
        data_dir=args.data_dir or base.data_dir,
        jobs=args.jobs or base.jobs,
        access=base.access if args.keys is None else msgspec.structs.replace(base.access, file=args.keys),
    )
    if not args.open_to_anyone:
        refuse_open_bind(settings)
    return settings


def with_data_dir(settings: Settings) -> Settings:
    """With that below the user's state directory where none is named. One on any free port would not find again what
    it had kept, and has none."""
    if not settings.port and not settings.jobs:
        return settings
    return msgspec.structs.replace(settings, data_dir=str(data_dir_of(settings)))


def _to_base(args: argparse.Namespace) -> Settings:
    """What the file says; without one, the one model that the arguments name."""
    file = args.file or args.config
    if file is None:
        return Settings(models=(to_model_config(args),))
    given = [name for name in _OF_ONE_MODEL if getattr(args, name) != args.model_defaults[name]]
    if given:
        raise InvalidRequest(
            f"--{given[0].replace('_', '-')} is about one model, and {file} names its own. Write it there, "
            "or leave the file out.",
            param=given[0],
        )
    return load(file)


def _to_tls(args: argparse.Namespace, base: Tls | None) -> Tls | None:
    """Raises `InvalidRequest` for a certificate without a key, or a key without a certificate."""
    if args.tls_certificate is None and args.tls_key is None:
        return base
    if args.tls_certificate is None or args.tls_key is None:
        raise InvalidRequest(
            "HTTPS needs both: --tls-certificate with the certificate, --tls-key with its key.", param="tls"
        )
    return Tls(certificate=args.tls_certificate, key=args.tls_key)


def _to_picture_size(args: argparse.Namespace, base: PictureSize) -> PictureSize:
    given = {name: getattr(args, f"image_{name}") for name in PictureSize.__struct_fields__}
    return msgspec.structs.replace(base, **{name: value for name, value in given.items() if value is not None})


def refuse_open_bind(settings: Settings) -> None:
    """Raises `InvalidRequest` for an address that other machines reach where no key protects it."""
    hosts = [settings.host, *([] if settings.admin is None else [settings.admin.host])]
    reached = [host for host in hosts if not is_loopback(host)]
    if not reached or not Gate(settings.access, keys_path(with_data_dir(settings))).is_open:
        return
    raise InvalidRequest(
        f"Listening on {reached[0]} would let other machines use the server, and no key protects it. Make one: "
        "sightline keys create NAME. Or listen on 127.0.0.1, or say --open-to-anyone if that is what you want.",
        param="host",
    )


def _to_fetch_policy(choice: str, networks: Sequence[str]) -> FetchPolicy:
    """Raises `InvalidRequest` for what names no host or no network."""
    hosts = [part.strip().lower() for part in choice.split(",")]
    if hosts == ["off"]:
        hosts = []
    elif "off" in hosts or "" in hosts:
        raise InvalidRequest(
            "--fetch takes 'off', 'any-public' or hosts with commas between them, such as "
            "--fetch cdn.example.com,*.example.org.",
            param="fetch",
        )
    return FetchPolicy(
        any_public="any-public" in hosts,
        allow_hosts=tuple(host for host in hosts if host != "any-public"),
        allow_networks=tuple(networks),
    )


def listen(host: str, port: int, argument: str = "--port") -> socket.socket:
    """The socket, bound before anything heavy is started, so that a taken port is told at once.

    Raises `InvalidRequest` when the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        # With the protocol: asyncio turns Nagle's algorithm off (40 ms on a connection that is kept) only where it
        # reads TCP there.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)  # who connects as soon as the address is printed waits a moment, and is not refused
    except OSError as error:
        raise InvalidRequest(
            f"Cannot listen on {host}:{port}: {error.strerror}. Choose another with {argument}.", param="port"
        ) from None
    listener.set_inheritable(False)
    return listener
