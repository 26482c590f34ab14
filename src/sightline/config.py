"""Settings and model configurations. The only file that reads the environment.

Both are frozen values, made once at start by the command line and passed down; nothing below asks the environment.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from sightline.errors import InvalidRequest

MIB = 1024 * 1024
PEEK = "peek"
"""The name of the embedded model, and the source that means it."""
DEFAULT_URL = "http://127.0.0.1:8000/v1"
"""Where a server is that was told nothing else."""


class ImageLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a picture may cost before anyone decodes it, and while."""

    max_bytes: int = 20 * MIB
    """Of one picture file."""
    max_pixels: int = 4096 * 4096
    """Counted after scaled decode, so that a 48-megapixel photograph works and a lossless bomb does not."""
    max_side: int = 16_384
    max_images: int = 64
    """In one request, whatever the model allows."""
    decoders: int = 2
    """Decoder processes at once."""
    decoder_memory_bytes: int = 1024 * MIB
    """Address space of one decoder."""
    decoder_cpu_s: int = 5
    """CPU seconds for one picture."""
    background: tuple[int, int, int] = (255, 255, 255)
    """What transparent pictures are laid on."""
    cache_bytes: int = 256 * MIB
    """Of decoded pictures kept for the next request that sends the same file; 0: none are."""


class AudioLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a recording may cost before an engine hears it."""

    max_bytes: Annotated[int, msgspec.Meta(ge=1)] = 32 * MIB
    """Of the file; `http.max_body_bytes` bounds the whole request."""
    max_s: Annotated[int, msgspec.Meta(ge=1, le=86_400)] = 1800
    """Seconds, counted while it is decoded: a few kilobytes can hold hours of silence."""
    decoders: Annotated[int, msgspec.Meta(ge=1)] = 2
    """Decoder processes at once."""
    decoder_memory_bytes: Annotated[int, msgspec.Meta(ge=256 * MIB)] = 1024 * MIB
    """Address space of one decoder."""
    decoder_cpu_s: Annotated[int, msgspec.Meta(ge=1)] = 60
    """CPU seconds for one recording."""


class PictureSize(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How large an operator lets pictures reach a model. `images/plan.py` says what becomes of it."""

    detail: Literal["auto", "low", "high", "original"] = "auto"
    """Of pictures whose request asks for none."""
    max_pixels: int | None = None
    """At most, whatever a request asks for; None: what the model can use."""
    min_pixels: int | None = None

    def __post_init__(self) -> None:
        low, high = self.min_pixels, self.max_pixels
        if any(pixels is not None and pixels < 1 for pixels in (low, high)):
            raise InvalidRequest("max_pixels and min_pixels are numbers of pixels, 1 or more.", param="max_pixels")
        if low is not None and high is not None and low > high:
            raise InvalidRequest(f"min_pixels ({low}) must not be above max_pixels ({high}).", param="min_pixels")


class FetchPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which pictures named by a URL the server downloads for its clients. As it stands: none.

    `any_public` and `allow_hosts` say which names may be asked for, `allow_networks` which addresses they may lead to
    beside public ones. Raises `InvalidRequest`, for the operator, at a value that cannot be meant.
    """

    any_public: bool = False
    """Any host, as long as it is at public addresses."""
    allow_hosts: tuple[str, ...] = ()
    """`cdn.example.com`, `*.example.com` (every name below it, not itself), an address; each for the ports 80 and 443,
    or for the one it names: `localhost:9000`, `[::1]:9000`."""
    allow_networks: tuple[str, ...] = ()
    """CIDR blocks, such as `10.1.0.0/16`: the one way to an address that is not public."""
    allow_http: bool = True
    """Whether http: is taken too, not only https:."""
    max_redirects: int = 0
    """At most 3. Each is checked like the URL itself, and none leads from https: to http:."""
    max_at_once: int = 4
    """Downloads under way; more wait, and whose tenant has the fewest is next."""
    connect_s: float = 2.0
    total_s: float = 10.0
    """For one picture, from looking up its host to its last byte."""

    @property
    def enabled(self) -> bool:
        return self.any_public or bool(self.allow_hosts)

    def __post_init__(self) -> None:
        for host in self.allow_hosts:
            if not _is_host_entry(host):
                raise _bad_fetch(
                    f"{host!r} names no host. Write cdn.example.com, *.example.com, localhost:9000 or [::1]:9000, "
                    "in lower case, without a scheme or a path."
                )
        for network in self.allow_networks:
            try:
                ipaddress.ip_network(network)
            except ValueError:
                raise _bad_fetch(
                    f"{network!r} is no network. Write a CIDR block whose host bits are zero, such as 10.1.0.0/16."
                ) from None
        if self.allow_networks and not self.enabled:
            raise _bad_fetch(
                "networks alone open nothing: they say which addresses a host may have. Name the hosts too, "
                "as in --fetch minio.internal:9000 --fetch-network 10.1.0.0/16."
            )
        if not 0 <= self.max_redirects <= 3:
            raise _bad_fetch(f"{self.max_redirects} redirects are not followed; choose 0 to 3.")
        if self.max_at_once < 1 or not 0 < self.connect_s <= self.total_s:
            raise _bad_fetch("at least one download at once, and 0 < connect_s <= total_s.")


HOST_ENTRY = re.compile(
    r"(?:(?P<below>\*\.)?(?P<name>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)|\[(?P<ipv6>[0-9a-f:.]+)\])(?::(?P<port>[1-9][0-9]{0,4}))?"
)
"""One entry of `FetchPolicy.allow_hosts`, as far as a pattern can tell."""


def _is_host_entry(text: str) -> bool:
    match = HOST_ENTRY.fullmatch(text)
    if match is None or int(match["port"] or 1) > 65535:
        return False
    try:
        return match["ipv6"] is None or bool(ipaddress.IPv6Address(match["ipv6"]))
    except ValueError:
        return False


def _bad_fetch(problem: str) -> InvalidRequest:
    return InvalidRequest(f"The fetch policy: {problem}", param="fetch")


class HttpLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    max_body_bytes: int = 64 * MIB
    max_held_bytes: Annotated[int, msgspec.Meta(ge=1)] = 128 * MIB
    """Of the bodies of all requests that are under way or wait, in memory. Who comes when there is no room is refused
    with 503 and a Retry-After, before the body is read."""
    max_messages: int = 1_000
    max_parts: int = 2_000
    max_json_depth: int = 64
    max_choices: int = 8
    keepalive_s: float = 15.0
    """Between `: ping` comments on an idle event stream."""
    max_head_bytes: Annotated[int, msgspec.Meta(ge=1024)] = 32 * 1024
    """Of a request's first line and headers together."""
    max_headers: Annotated[int, msgspec.Meta(ge=16)] = 100
    head_s: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    """Seconds for the head to arrive, from its first byte on; for the first one of a connection, and for its TLS
    handshake, from connecting on."""
    body_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    """Seconds that any body may take; a long one has more, by `min_body_rate`."""
    min_body_rate: Annotated[int, msgspec.Meta(ge=1)] = 1024
    """Bytes a second. Whatever has arrived of a body adds its share to `body_s`, so that a slow link can send a large
    picture, and nobody holds a connection with a byte now and then."""
    idle_s: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    """How long a connection is kept open for the next request."""
    write_stall_s: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    """A client that takes nothing of its answer for so long is cut off, and what runs for it ends."""
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 4096
    """At once; fewer where the process may not open so many files. More are told 503, or with TLS nothing."""
    max_connections_per_ip: Annotated[int, msgspec.Meta(ge=0)] = 100
    """Of one client's address (IPv6: of its /64), or requests at once where `trusted_proxies` stand before it; more are
    told 429. 0: not counted."""
    uncounted_networks: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    """CIDR blocks whose addresses may open any number of connections."""
    trusted_proxies: tuple[str, ...] = ()
    """CIDR blocks of the reverse proxies in front of this server. X-Forwarded-For and X-Forwarded-Proto are believed
    from them and from nobody else."""

    def __post_init__(self) -> None:
        for name in ("uncounted_networks", "trusted_proxies"):
            for network in getattr(self, name):
                try:
                    ipaddress.ip_network(network)
                except ValueError:
                    raise InvalidRequest(
                        f"{network!r} is no network. Write a CIDR block whose host bits are zero, such as 10.1.0.0/16 "
                        "or 127.0.0.1/32.",
                        param=f"http.{name}",
                    ) from None


class Tls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """HTTPS in place of HTTP. The files are read again when they change, for the connections from then on."""

    certificate: str
    """A PEM file: the server's certificate, and behind it those between it and the authority."""
    key: str
    """A PEM file without a password."""


class ResponseLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much is kept of the Responses API's responses, in memory, for those who go on from one."""

    max_bytes: Annotated[int, msgspec.Meta(ge=0)] = 256 * MIB
    """With their pictures, each counted once. What was used longest ago goes first."""
    max_age_s: Annotated[float, msgspec.Meta(gt=0)] = 86_400.0
    """After the last use."""


class FileLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Files that clients send to `/v1/files`, and those that batches write."""

    url: str | None = None
    """Where their bytes are kept, as fsspec writes it: `s3://bucket/prefix`; None: in the data directory."""
    max_bytes: Annotated[int, msgspec.Meta(ge=1)] = 512 * MIB
    """Of one file."""
    max_tenant_bytes: Annotated[int, msgspec.Meta(ge=0)] = 16 * 1024 * MIB
    """Of all that one tenant keeps, what batches write left out."""


class BatchLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a batch may hold, and how much of it runs."""

    max_lines: Annotated[int, msgspec.Meta(ge=1)] = 50_000
    max_bytes: Annotated[int, msgspec.Meta(ge=1)] = 200_000_000
    """Of the input file."""
    max_concurrent: Annotated[int, msgspec.Meta(ge=0)] = 16
    """Lines, of all batches together, that are asked at once; 0: this server answers none."""
    kept_s: Annotated[int, msgspec.Meta(ge=3_600)] = 30 * 86_400
    """How long a batch or an analysis is known after it has ended. What batches write has an expiry of its own."""


class OptimizedPictures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `POST /analyze/optimized` makes of a picture before a model sees it."""

    max_side: Annotated[int, msgspec.Meta(ge=64, le=16_384)] = 1024
    """Pixels of the longer side, at most."""
    jpeg_quality: Annotated[int, msgspec.Meta(ge=1, le=95)] = 85


class CorsPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which web pages may use this server from a browser. As it stands: none."""

    origins: tuple[str, ...] = ()
    """`https://app.example.com`, `http://localhost:5173`, each as browsers write it; `*` for any."""

    def __post_init__(self) -> None:
        for origin in self.origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise InvalidRequest(
                    f"{origin[:128]!r} is no origin of a web page. Write it as browsers do, such as "
                    "https://app.example.com or http://localhost:5173: in lower case, without a path, a slash at the "
                    "end or the scheme's own port.",
                    param="cors",
                )


_ORIGIN = re.compile(
    r"(?:http(?!.*:80$)|https(?!.*:443$))://(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?"
)
"""RFC 6454, section 6.2: a default port is left out. Not `null`, which every sandboxed frame and local file is."""


class KeyLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much whoever has an API key may ask for. None: as much as there is."""

    requests_per_minute: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """A POST is a request; what only reads or deletes is none."""
    tokens_per_minute: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Of prompts, pictures included, and answers."""
    concurrent: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Requests at once. Lines of batches do not count: `batches.max_concurrent` is for them."""
    tokens_per_day: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """From midnight to midnight, UTC; kept across restarts."""
    pictures_per_day: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Likewise."""


class KeyConfig(KeyLimits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An API key that is not made by `sightline keys create`. The key itself never stands in the file."""

    name: str
    """Its id is `key-` and this."""
    sha256: str | None = None
    """Of the key, in hexadecimal: `printf %s "$KEY" | sha256sum`. The key must be random, of 32 bytes or more."""
    env: str | None = None
    """Or the name of the variable of the environment that holds the key."""
    models: tuple[str, ...] = ()
    """The models it may be used for, by any of their names; none: all."""
    tenant: str | None = None
    """Whose files, batches and responses it sees; None: its own alone. Keys of one tenant share them; those of before
    there were keys are the tenant `""`'s."""
    admin: bool = False
    """Whether it may also control the server: metrics, `/admin`, what is loaded."""
    expires: datetime.date | None = None
    """The first day, UTC, on which it is no longer taken: `2027-01-01`."""

    def __post_init__(self) -> None:
        if not _KEY_NAME.fullmatch(self.name):
            raise InvalidRequest(
                f"{self.name[:64]!r} is no name of a key: letters, digits and . _ - at most 64 of them.", param="access"
            )
        if (self.sha256 is None) == (self.env is None):
            raise InvalidRequest(
                f"The key {self.name} is told by its sha256, or by env, the name of a variable that holds it.",
                param="access",
            )
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise InvalidRequest(
                f'The sha256 of the key {self.name} is 64 hexadecimal digits: printf %s "$KEY" | sha256sum.',
                param="access",
            )

    @property
    def limits(self) -> KeyLimits:
        return KeyLimits(**{name: getattr(self, name) for name in KeyLimits.__struct_fields__})


_KEY_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class AccessPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may use the server. As it stands: anyone who reaches it, until there is a first key."""

    file: str | None = None
    """Where `sightline keys` keeps its keys; None: `keys.db` in the data directory."""
    keys: tuple[KeyConfig, ...] = ()
    """More of them, for servers that are made anew each time, such as containers."""

    def __post_init__(self) -> None:
        names = [key.name for key in self.keys]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InvalidRequest(f"Two keys are named {twice}; each has a name of its own.", param="access")


class AdminEndpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A listener of its own for `/metrics` and `/admin`, which the other then has no more."""

    host: str = "127.0.0.1"
    """On another, `/metrics` is there for whoever reaches it, without a key."""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 9090
    """0: any free one."""


class Tracing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Traces of requests, sent to an OpenTelemetry collector. Never content: names, counts and times."""

    otlp_endpoint: str | None = None
    """Where OTLP over HTTP is taken, such as `http://localhost:4318`; `/v1/traces` is added. None: what
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT (as it stands) or OTEL_EXPORTER_OTLP_ENDPOINT says; without them no traces are
    made."""
    sample: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    """What part of the requests is traced that come without a trace of their own. One that comes with a `traceparent`
    header is traced if its sender says so."""
    service_name: str | None = None
    """None: what OTEL_SERVICE_NAME says, else `sightline`."""
    every_s: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    """How often spans are sent."""
    flush_s: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    """How long one sending may take, and the last one when the server ends."""

    def __post_init__(self) -> None:
        if self.otlp_endpoint is not None and not _HTTP_URL.fullmatch(self.otlp_endpoint):
            raise InvalidRequest(
                f"{self.otlp_endpoint[:128]!r} is no endpoint. Write the address of a collector that takes OTLP over "
                "HTTP, such as http://localhost:4318, without a path, a user or a query.",
                param="tracing.otlp_endpoint",
            )

    @property
    def endpoint(self) -> str | None:
        """The whole URL that spans are sent to; None: none are made. OpenTelemetry's general SDK configuration:
        OTEL_SDK_DISABLED and OTEL_TRACES_EXPORTER=none turn them off, whatever names an endpoint."""
        disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        if disabled or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
            return None
        if self.otlp_endpoint is None and (exact := os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")):
            return exact
        base = self.otlp_endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        return f"{base.rstrip('/')}/v1/traces" if base else None

    @property
    def name(self) -> str:
        """`service.name` of what is sent."""
        return self.service_name or os.environ.get("OTEL_SERVICE_NAME") or "sightline"


_HTTP_URL = re.compile(r"https?://[A-Za-z0-9._\-\[\]:]+/?")


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One served model: a name, the engine that runs it, where it lives."""

    name: str
    engine: str = "openvino"
    source: str = PEEK
    """`peek`, or where the model is: a directory; for some engines a GGUF file, a hub's id, or a name they know."""
    options: Mapping[str, Any] = {}
    """The engine's own options, checked by the engine."""
    python: str | None = None
    """The Python of the environment that the engine is installed in; None: the server's own. `sightline engine install`
    makes such environments."""
    max_concurrent: Annotated[int, msgspec.Meta(ge=1)] = 16
    """Sequences that run at once; more wait."""
    max_queue: Annotated[int, msgspec.Meta(ge=0)] = 256
    """Requests that may wait; more are refused with 503 and a Retry-After."""
    max_wait_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    """Who would wait longer than this for a slot is refused at once, as far as queue and measured rate can tell. The
    shorter, the sooner those who are taken have their first token, however many come; batches wait regardless."""
    start_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    limit_mm_per_prompt: Mapping[str, int] = {}
    """`{"image": 4}`: at most four pictures in a request, on whichever engine."""
    picture_size: PictureSize = PictureSize()
    aliases: tuple[str, ...] = ()
    """Other names that requests may use for it."""
    fallbacks: tuple[str, ...] = ()
    """Names of the models that are tried, in this order, when this one fails or is full."""
    load: Literal["start", "demand"] = "start"
    """`start`: loaded before the server is ready; `demand`: with the first request for it."""
    idle_unload_s: float | None = None
    """Seconds without a request after which it is unloaded, until the next; None: never."""

    def __post_init__(self) -> None:
        if self.idle_unload_s is not None and not 0 < self.idle_unload_s < float("inf"):
            raise InvalidRequest(
                f"idle_unload_s is a number of seconds above 0, not {self.idle_unload_s}; leave it out for never.",
                param="idle_unload_s",
            )
        for kind, most in self.limit_mm_per_prompt.items():
            if kind != "image" or most < 0:
                raise InvalidRequest(
                    f"limit_mm_per_prompt takes the key 'image' and a number from 0 on, not {kind!r}: {most}.",
                    param="limit_mm_per_prompt",
                )

    @property
    def max_images(self) -> int | None:
        """Pictures in one request; None: as many as the engine takes."""
        return self.limit_mm_per_prompt.get("image")

    @property
    def known_as(self) -> str:
        """What a server that runs the model calls it, where no option says so: the source, or this model's name."""
        return self.name if self.source == PEEK else self.source

    @property
    def path(self) -> Path:
        """Of a source that is a file or a directory."""
        return Path(__file__).parent / "peek" / "model" if self.source == PEEK else Path(self.source)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8000
    """0: any free one."""
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    """Processes that answer HTTP. They share models, limits, files and metrics; one more process, the core, has those.
    1: one process does all."""
    models: tuple[ModelConfig, ...] = (ModelConfig(name=PEEK),)
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    """Values of the Host header that are answered (ports are ignored); `*` for any."""
    request_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    """The deadline of a request that names none."""
    drain_s: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    """For how long a server that is told to stop (SIGTERM, Ctrl-C) goes on with the answers that it has begun."""
    images: ImageLimits = ImageLimits()
    picture_size: PictureSize = PictureSize()
    """For every model; a model's own narrows it further."""
    audio: AudioLimits = AudioLimits()
    fetch: FetchPolicy = FetchPolicy()
    http: HttpLimits = HttpLimits()
    tls: Tls | None = None
    responses: ResponseLimits = ResponseLimits()
    cors: CorsPolicy = CorsPolicy()
    access: AccessPolicy = AccessPolicy()
    admin: AdminEndpoint | None = None
    """None: `/metrics` and `/admin` are on the one listener, for admin keys once there are keys."""
    optimized: OptimizedPictures = OptimizedPictures()
    data_dir: str | None = None
    """Where files, batches and their answers are kept. Servers on one machine may share it if they serve the same
    models. None: `sightline serve` takes one below the user's state directory, by its port; elsewhere it is a
    temporary one."""
    files: FileLimits = FileLimits()
    jobs: Annotated[str, msgspec.Meta(pattern=r"^(redis|rediss|unix)://")] | None = None
    """Where batches and analyses wait: `redis://HOST:PORT/DB` (with TLS `rediss://`), which servers and workers on
    several machines share; with a password, `redis://:${NAME}@HOST:PORT/DB`. None: in the data directory."""
    batches: BatchLimits = BatchLimits()
    tracing: Tracing = Tracing()
    ui: bool = False
    """Whether there is a page at `/ui` to chat with the models. It needs `pip install 'sightline[ui]'`."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "human"] | None = None
    """None: for people where the log goes to a terminal, else a line of JSON for each record."""


def state_dir() -> Path:
    """Where programs keep what should outlive them (XDG Base Directory Specification 0.8)."""
    given = os.environ.get("XDG_STATE_HOME", "")
    base = Path(given) if given.startswith("/") else Path.home() / ".local" / "state"
    return base / "sightline"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address to listen on."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def data_dir_of(settings: Settings) -> Path:
    """Where a process with these settings keeps what outlives it: those that share a queue on one machine share it."""
    if settings.data_dir is not None:
        return Path(settings.data_dir)
    if settings.jobs is not None:
        return state_dir() / f"queue-{hashlib.sha256(settings.jobs.encode()).hexdigest()[:16]}"
    return state_dir() / f"port-{settings.port}"


def environment(name: str, default: str | None = None) -> str | None:
    """The value of `SIGHTLINE_<NAME>`, or the default. Every variable we read goes through here."""
    return os.environ.get(f"SIGHTLINE_{name}", default)


def variable(name: str) -> str | None:
    """The value of any variable, for an operator who names it in a configuration file: `${NAME}`."""
    return os.environ.get(name)
