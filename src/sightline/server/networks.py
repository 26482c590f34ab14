"""Addresses: whose they are, and whom a proxy speaks for."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

_IPV6_CLIENT_BITS = 64
"""What one customer is given (RFC 6177): who has one address of it has all."""


class Networks:
    """CIDR blocks. `address in networks` is False for what is no address."""

    def __init__(self, blocks: Iterable[str]) -> None:
        self._blocks = [ipaddress.ip_network(block) for block in blocks]

    def __contains__(self, address: str) -> bool:
        parsed = _parse(address) if self._blocks else None
        return parsed is not None and any(parsed in block for block in self._blocks)


def to_client(address: str) -> str:
    """What connections are counted by: an IPv4 address, the /64 of an IPv6 one."""
    parsed = _parse(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, _IPV6_CLIENT_BITS), strict=False))
    return address if parsed is None else str(parsed)


def to_forwarded_client(forwarded: str, proxies: Networks) -> str | None:
    """The client in the values of X-Forwarded-For, joined by commas: each proxy wrote at the end who came to it, so it
    is the last address that is no proxy of ours. What stands before it is anybody's word. None: there is none."""
    client = None
    for part in reversed(forwarded.split(",")):
        parsed = _parse(_without_port(part.strip()))
        if parsed is None:
            break
        client = str(parsed)
        if client not in proxies:
            break
    return client


def _without_port(text: str) -> str:
    """`192.0.2.1:4711` and `[2001:db8::1]:4711`, as some proxies write them."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _parse(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed
