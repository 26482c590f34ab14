"""Where pictures may be fetched from: URLs, host names and addresses, judged without touching the network.

A URL is parsed once, strictly, into the parts that the request is then made of: no second parser can read it otherwise.
Its host is judged twice, as a name against the operator's list and, once resolved, by every address it has. The text of
a host says little (`2130706433`, `0x7f.1` and `localhost` are all 127.0.0.1 to a resolver), so addresses decide.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal, cast

from sightline.config import HOST_ENTRY, FetchPolicy
from sightline.errors import ImageForbidden

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

INSTEAD = "send the picture as a data: URI."
"""What every refusal ends with: the way that always works."""

_MAX_URL = 2048
_URL = re.compile(
    r"(?P<scheme>https?)://(?:(?P<name>[a-z0-9_.-]+)|\[(?P<ipv6>[0-9a-f:.]+)\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(?:#.*)?",
    re.ASCII | re.IGNORECASE,
)
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """A URL in its parts; its fragment is gone."""

    scheme: Literal["http", "https"]
    host: str
    """Lower case; a name without a dot at its end, or an address, an IPv6 one without its brackets."""
    port: int
    path: str
    """With the query: what the request line says."""

    @property
    def authority(self) -> str:
        """The value of the Host header (RFC 9110, section 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def to_target(url: str) -> Target:
    """Raises `ImageForbidden` for whatever is not a plain http: or https: URL (RFC 3986) of printable ASCII."""
    if len(url) > _MAX_URL:
        raise _refused(f"is longer than {_MAX_URL:,} characters")
    if "\\" in url or any(not "\x21" <= character <= "\x7e" for character in url):
        raise _refused(
            "has backslashes, spaces, control characters or letters outside ASCII; "
            "percent-encode them in its path and use the xn-- form of its host"
        )
    if "@" in re.split("[/?#]", url.partition("://")[2], maxsplit=1)[0]:
        raise _refused("has a user name or a password in it, which this server does not pass on")
    match = _URL.fullmatch(url)
    if match is None:
        raise _refused("is not of the form https://host/path")
    scheme = cast(Literal["http", "https"], match["scheme"].lower())
    port = int(match["port"]) if match["port"] else _DEFAULT_PORTS[scheme]
    if not 0 < port < 65536:
        raise _refused("has a port outside 1 to 65535")
    return Target(scheme, _to_host(match["name"], match["ipv6"]), port, (match["path"] or "/") + (match["query"] or ""))


def _to_host(name: str | None, ipv6: str | None) -> str:
    if ipv6 is not None:
        try:
            return str(IPv6Address(ipv6))
        except ValueError:
            raise _refused("has no valid address between its brackets") from None
    host = (name or "").lower().removesuffix(".")
    if not _NAME.fullmatch(host):
        raise _refused("has no valid host name")
    return host


def _refused(problem: str) -> ImageForbidden:
    return ImageForbidden(f"this picture's URL {problem}. Correct it, or {INSTEAD}")


class Gate:
    """A `FetchPolicy`, ready to be asked. Pure."""

    def __init__(self, policy: FetchPolicy) -> None:
        self._policy = policy
        self._hosts = [_HostRule.parse(entry) for entry in policy.allow_hosts]
        self._networks = [ip_network(text) for text in policy.allow_networks]

    def admit(self, url: str) -> Target:
        """Raises `ImageForbidden` unless this is a plain URL whose scheme, host and port clients may name."""
        if not self._policy.enabled:
            raise ImageForbidden(f"remote pictures are off on this server; {INSTEAD}")
        target = to_target(url)
        self._check_name(target)
        return target

    def _check_name(self, target: Target) -> None:
        if target.scheme == "http" and not self._policy.allow_http:
            raise ImageForbidden(f"this server fetches pictures over https: only. Use such a URL, or {INSTEAD}")
        ordinary = target.port in _DEFAULT_PORTS.values()
        if any(rule.matches(target) for rule in self._hosts) or (self._policy.any_public and ordinary):
            return
        if self._policy.any_public:
            raise ImageForbidden(
                f"this server fetches pictures from the ports 80 and 443 only. Use those, or {INSTEAD}"
            )
        raise ImageForbidden(
            "this server fetches pictures only from hosts (and ports) that its operator named, and this URL's is not "
            f"among them. Ask the operator to add it, or {INSTEAD}"
        )

    def check_addresses(self, texts: Sequence[str]) -> tuple[Address, ...]:
        """The addresses of a host, in the resolver's order, once every one of them may be connected to.

        One that may not spoils them all: a name with a public and a private address is an attempt, or a mistake.
        Raises `ImageForbidden`, with the words for a host that does not exist, so that nobody can ask this server
        which names a private network has.
        """
        addresses = [_parse(text) for text in texts]
        allowed = [address for address in addresses if address is not None and self._may_connect(address)]
        if not allowed or len(allowed) < len(addresses):
            raise nowhere()
        return tuple(dict.fromkeys(allowed))

    def _may_connect(self, address: Address) -> bool:
        if {address, _embedded(address)} & _METADATA:
            return False
        return is_public(address) or any(address in network for network in self._networks)


def nowhere() -> ImageForbidden:
    """For a host that does not exist, and for one that is where this server does not go."""
    return ImageForbidden(
        "the host of this picture's URL does not exist, or is not at an address that this server fetches from. "
        f"Check the URL, or {INSTEAD}"
    )


@dataclass(frozen=True, slots=True)
class _HostRule:
    host: str
    below: bool
    """Whether it means the names below `host`."""
    port: int | None

    @classmethod
    def parse(cls, entry: str) -> _HostRule:
        match = HOST_ENTRY.fullmatch(entry)
        assert match is not None  # FetchPolicy has seen to it
        host = match["name"] or str(IPv6Address(match["ipv6"]))
        return cls(host, match["below"] is not None, int(match["port"]) if match["port"] else None)

    def matches(self, target: Target) -> bool:
        if target.port not in (_DEFAULT_PORTS.values() if self.port is None else (self.port,)):
            return False
        return target.host.endswith(f".{self.host}") if self.below else target.host == self.host


# --- addresses -------------------------------------------------------------------------------------------------------

_NOT_PUBLIC = tuple(
    ip_network(text)
    for text in (
        # IPv4 blocks that Python 3.11 to 3.13 call global, or have called so in one of their releases.
        "0.0.0.0/8",  # "this network": Linux connects 0.0.0.0 to itself
        "100.64.0.0/10",  # shared by carriers, and where Alibaba has its metadata
        "192.0.0.0/24",  # IETF protocol assignments
        "192.88.99.0/24",  # 6to4 relays
        "198.18.0.0/15",  # benchmarks
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and the broadcast address
        # IPv6 that leads to IPv4 by way of somebody's translator, and what is no host's address.
        "::/96",  # unspecified, loopback, IPv4-compatible
        "::ffff:0:0/96",  # IPv4-mapped: a resolver that means IPv4 says IPv4
        "::ffff:0:0:0/96",  # IPv4-translated (SIIT)
        "64:ff9b::/96",  # NAT64
        "64:ff9b:1::/48",  # NAT64, local
        "100::/64",  # discard
        "2001::/23",  # IETF protocol assignments, Teredo (2001::/32) among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fc00::/7",  # unique local
        "fe80::/10",  # link-local
        "fec0::/10",  # site-local
        "ff00::/8",  # multicast
    )
)
_METADATA: frozenset[Address | None] = frozenset(
    ip_address(text)
    for text in (
        "169.254.169.254",  # nearly every cloud
        "169.254.170.2",  # AWS ECS: credentials of a task
        "169.254.170.23",  # AWS EKS: credentials of a pod
        "168.63.129.16",  # Azure: a public address that is the host's own
        "100.100.100.200",  # Alibaba
        "192.0.0.192",  # Oracle, formerly
        "fd00:ec2::254",  # AWS
        "fd00:ec2::23",  # AWS EKS
        "fd20:ce::254",  # Google
    )
)
"""Credentials of the machine itself. No picture is there: refused even inside a network that the operator allowed."""

_EMBEDDING = tuple(IPv6Network(text) for text in ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96"))


def is_public(address: Address) -> bool:
    """Whether this is an ordinary unicast address of the public internet: what Python calls global, less the blocks by
    which an IPv4 address or the machine itself can be reached under another name."""
    return address.is_global and address not in _METADATA and not any(address in block for block in _NOT_PUBLIC)


def _parse(text: str) -> Address | None:
    """An address as a resolver writes it; None for one with a zone (`fe80::1%eth0`), which only a link knows."""
    return None if "%" in text else ip_address(text)


def _embedded(address: Address) -> IPv4Address | None:
    """The IPv4 address that a translator would make of this one."""
    if isinstance(address, IPv4Address):
        return None
    if any(address in block for block in _EMBEDDING):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour
