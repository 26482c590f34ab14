"""`sightline serve`: a model behind the OpenAI API."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import socket
import sys
from collections.abc import Sequence

import uvicorn

from sightline.api.app import create_app
from sightline.cli.models import (
    add_model_arguments,
    add_picture_size_arguments,
    to_model_config,
    to_picture_size,
)
from sightline.config import MIB, FetchPolicy, ImageLimits, Settings, environment
from sightline.errors import InvalidRequest
from sightline.service import Service


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default=environment("HOST", "127.0.0.1"), help="address to listen on")
    parser.add_argument("--port", type=int, default=int(environment("PORT", "8000") or 8000), help="0: any free one")
    add_model_arguments(parser)
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
        "--fetch",
        default=environment("FETCH", "off"),
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
    add_picture_size_arguments(parser, "image-", "to any model")
    parser.add_argument(
        "--image-cache-mib",
        type=int,
        default=ImageLimits().cache_bytes // MIB,
        metavar="N",
        help="MiB of decoded pictures kept for requests that send the same file again; 0: none (default: %(default)s)",
    )
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])


_SWITCH_S = 0.0005
"""How long a thread that parses or hashes keeps the interpreter while the event loop waits for it; the loop waits after
each of its system calls, and Python's own 5 ms would add up."""


def run(args: argparse.Namespace) -> int:
    settings = to_settings(args)
    sys.setswitchinterval(_SWITCH_S)
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    listener = _listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    model = settings.models[0].name
    print(f"Sightline serves {model} on http://{shown}:{port}/v1", flush=True)
    app = create_app(Service(settings), settings)
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=True,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=30,
    )
    uvicorn.Server(config).run(sockets=[listener])
    return 0


def to_settings(args: argparse.Namespace) -> Settings:
    """Raises `InvalidRequest` for a bind that would leave the server open to other machines without a key."""
    defaults = Settings()
    if not _is_loopback(args.host) and not args.open_to_anyone:
        raise InvalidRequest(
            f"Listening on {args.host} would let other machines use the server, and no key protects it. "
            "Listen on 127.0.0.1, or say --open-to-anyone if that is what you want.",
            param="host",
        )
    hosts = (*defaults.allowed_hosts, *args.allowed_host)
    return Settings(
        host=args.host,
        port=args.port,
        models=(to_model_config(args),),
        allowed_hosts=hosts if _is_loopback(args.host) or args.allowed_host else ("*",),
        images=ImageLimits(cache_bytes=max(0, args.image_cache_mib) * MIB),
        picture_size=to_picture_size(args, "image-"),
        fetch=_to_fetch_policy(args.fetch, args.fetch_network),
        log_level=args.log_level,
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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
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
    except OSError as error:
        raise InvalidRequest(
            f"Cannot listen on {host}:{port}: {error.strerror}. Choose another with --port.", param="port"
        ) from None
    listener.set_inheritable(False)
    return listener
