"""Who reaches the server and how, and where it goes itself."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

import msgspec

from sightline.config.limits import MIB
from sightline.errors import InvalidRequest


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


class AdminEndpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A listener of its own for `/metrics` and `/admin`, which the other then has no more."""

    host: str = "127.0.0.1"
    """On another, `/metrics` is there for whoever reaches it, without a key."""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 9090
    """0: any free one."""


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


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address to listen on."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
