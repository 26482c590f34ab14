"""What `sightline doctor` asks of a configuration: whether a server with these settings would start, and stay up."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import http.client
import json
import logging
import os
import shutil
import socket
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from sightline import tracing
from sightline.cli import serve
from sightline.cli.doctor_findings import Check, ok, problem, warning
from sightline.config import MIB, Settings, Tls
from sightline.configfile import check
from sightline.errors import SightlineError
from sightline.jobs.redis_connection import Connection, describe
from sightline.server.tls import Certificate

Found = Iterator[tuple[str, ...]]

_SLOW_SYNC_S = 0.1
"""What is acknowledged waits for one of these."""
_LITTLE_DISK = 1024 * MIB
_SOON = datetime.timedelta(days=14)
"""A certificate that is renewed by a program is renewed before."""
_ANSWER_S = 3.0
"""For another server to answer."""


def settings_checks(file: Path | None) -> Sequence[Check]:
    """Of a file with problems, only these are told: nothing that could be said of the rest would be of use."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    serve.add_arguments(parser)
    arguments = ["--open-to-anyone", *([] if file is None else ["--config", str(file)])]
    try:
        settings = serve.with_data_dir(serve.to_settings(parser.parse_args(arguments)))
    except (SightlineError, argparse.ArgumentError) as error:  # the latter: what a variable says
        wrong = error.message
        return (Check("configuration", lambda: _wrong(file, wrong)),)
    checks = [
        Check("configuration", lambda: _configured(file, settings)),
        Check("keys", lambda: keys(settings)),
        Check("port", lambda: ports(settings)),
        Check("data directory", lambda: data_directory(settings)),
    ]
    if (tls := settings.tls) is not None:
        checks.append(Check("tls", lambda: certificate(tls, datetime.datetime.now(datetime.UTC))))
    if (jobs := settings.jobs) is not None:
        checks.append(Check("redis", lambda: redis(jobs)))
    if settings.tracing.endpoint is not None:
        checks.append(Check("traces", lambda: collector(settings)))
    return checks


def _wrong(file: Path | None, message: str) -> Found:
    problems = [] if file is None else [each.show(str(file)) for each in check(file)[1]]
    for each in problems or [message]:
        yield problem(each, "Mend it; docs/configuration.md has every setting." if file else "Mend the environment.")


def _configured(file: Path | None, settings: Settings) -> Found:
    models = ", ".join(f"{model.name} on {model.engine}" for model in settings.models)
    yield ok(f"{'no file' if file is None else file}: {models}")


def keys(settings: Settings) -> Found:
    try:
        serve.refuse_open_bind(settings)
    except SightlineError as error:
        yield problem(error.message, "sightline keys create NAME")
    else:
        yield ok("as the address that is listened on wants")


def ports(settings: Settings) -> Found:
    yield from _port(settings.host, settings.port, "https" if settings.tls else "http")
    if settings.admin is not None:
        yield from _port(settings.admin.host, settings.admin.port, "http")


def _port(host: str, port: int, scheme: str) -> Found:
    """Bound and let go again: nobody can have connected meanwhile, as nothing listened."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if scheme == "http" and _is_sightline(host, port):
            yield warning(
                f"a Sightline server listens on {host}:{port} already.", "A second one needs another: --port."
            )
        else:
            yield problem(
                f"cannot listen on {host}:{port}: {error.strerror}.",
                f"Choose another with --port, or see who has it: ss -ltnp 'sport = :{port}'",
            )
    else:
        yield ok(f"{host}:{port} is free" if port else f"any free one on {host}")


def _is_sightline(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host.strip("[]"), port, timeout=_ANSWER_S)
    try:
        connection.request("GET", "/health")
        return bool(json.loads(connection.getresponse().read(4096)).get("status") == "ok")
    except (OSError, http.client.HTTPException, ValueError, AttributeError):
        return False
    finally:
        connection.close()


def data_directory(settings: Settings) -> Found:
    """Looked at where it is, or where it would be made; nothing is left there."""
    if settings.data_dir is None:
        yield ok("a temporary one: what is kept ends with the server")
        return
    wanted = Path(settings.data_dir).absolute()
    place = next(parent for parent in (wanted, *wanted.parents) if parent.exists())
    told = str(wanted) if place == wanted else f"{wanted} (to be made in {place})"
    try:
        taken_s = _sync_time(place)
        free = shutil.disk_usage(place).free
    except OSError as error:
        yield problem(
            f"{told} cannot be written: {error.strerror}.",
            f"Make it writable for this user (id {os.getuid()}), or name another: --data-dir DIR, `data_dir:`.",
        )
        return
    figures = f"{told}: {free / 1024 / MIB:.1f} GiB free, a write is on the disk after {taken_s * 1000:.1f} ms"
    if free < _LITTLE_DISK:
        yield warning(f"{figures}.", "Make room: files and batches are refused when the disk is full.")
    elif taken_s > _SLOW_SYNC_S:
        yield warning(f"{figures}, which is slow.", "Batches wait for it: a local disk is better than a network's.")
    else:
        yield ok(figures)


def _sync_time(directory: Path) -> float:
    """Seconds of an fsync of 4 KiB: the best of three, as the first one may have to wait for others."""
    with tempfile.TemporaryFile(dir=directory) as file:
        times = []
        for _ in range(3):
            file.write(bytes(4096))
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return min(times)


def certificate(tls: Tls, now: datetime.datetime) -> Found:
    try:
        shown = _shown_to_clients(Certificate(tls).context, Path(tls.certificate))
    except SightlineError as error:
        yield problem(error.message, "Name the files of `tls:`: the certificate with those above it, and its key.")
        return
    except ssl.SSLCertVerificationError as error:
        yield problem(f"{tls.certificate}: {error.verify_message}.", "Renew it: clients refuse it.")
        return
    ends = datetime.datetime.fromtimestamp(ssl.cert_time_to_seconds(shown), datetime.UTC)
    if ends - now < _SOON:
        yield warning(
            f"{tls.certificate} ends on {ends:%Y-%m-%d}.", "Renew it; a running server takes the new one by itself."
        )
    else:
        yield ok(f"{tls.certificate} is good until {ends:%Y-%m-%d}")
    if Path(tls.key).stat().st_mode & 0o004:
        yield warning(f"{tls.key} can be read by every user of this machine.", f"chmod o-r {tls.key}")


def _shown_to_clients(server: ssl.SSLContext, file: Path) -> str:
    """The certificate's end, from a handshake in memory with a client that trusts it and nothing else: that way OpenSSL
    judges it as it would for a real one. Raises `ssl.SSLCertVerificationError`."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(file)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    found = ends[0].getpeercert()
    assert found is not None
    return str(found["notAfter"])


class _Told(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def redis(url: str) -> Found:
    told = _Told()
    log = logging.getLogger(Connection.__module__)
    log.addHandler(told)

    async def look() -> None:
        connection = Connection(url)
        try:
            await connection.start()
        finally:
            await connection.close()

    try:
        asyncio.run(look())
    except SightlineError as error:
        why = "; ".join([error.message, *told.lines])
        yield problem(f"{describe(url)}: {why}", "Start it, or mend `jobs:`; batches wait there.")
    else:
        for line in told.lines:
            yield warning(line, "In redis.conf, or: redis-cli CONFIG SET ...")
        yield ok(f"{describe(url)} answers")
    finally:
        log.removeHandler(told)


def collector(settings: Settings) -> Found:
    """An empty message of OTLP, as the exporter would send it."""
    endpoint = settings.tracing.endpoint
    assert endpoint is not None
    remedy = "Start the collector (OTLP over HTTP is usually on port 4318), or mend `tracing.otlp_endpoint`."
    try:
        tracing.verify(settings.tracing)
        request = urllib.request.Request(endpoint, b"", {"Content-Type": "application/x-protobuf"})
        with urllib.request.urlopen(request, timeout=_ANSWER_S):
            yield ok(f"{endpoint} takes them")
    except SightlineError as error:
        yield problem(error.message, "pip install 'sightline[otel]'")
    except urllib.error.HTTPError as error:
        yield warning(f"{endpoint} answers {error.code}.", remedy)
    except (OSError, ValueError) as error:
        yield warning(f"{endpoint} cannot be reached: {getattr(error, 'reason', error)}. Requests go on.", remedy)
