"""Who a client is: the names a server answers to, and what proxies say of whom they speak for."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from sightline.config import HttpLimits
from sightline.errors import InvalidRequest
from sightline.server.networks import Networks, to_client, to_forwarded_client
from tests.api.serving import serving
from tests.api.standin import ScriptedService, app_of

PROXIES = Networks(["10.0.0.0/8", "2001:db8:aaaa::/48"])


# ---- the Host header


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"localhost", 200),
        (b"localhost:8000", 200),
        (b"LOCALHOST", 200),
        (b"127.0.0.1:1", 200),
        (b"[::1]", 200),
        (b"[::1]:8000", 200),
        (b" \t localhost \t", 200),
        (b"evil.example", 421),
        (b"localhost.", 421),
        (b"localhost.evil.example", 421),
        (b"evil-localhost", 421),
        (b"2130706433", 421),
        (b"0x7f.1", 421),
        (b"127.1", 421),
        (b"0.0.0.0", 421),
        (b"[::ffff:127.0.0.1]", 421),
        (b"[0:0:0:0:0:0:0:1]", 421),
        (b"xn--lcalhost-n4a", 421),
        (b"", 400),
        (b"x/admin?", 400),
        (b"localhost/admin", 400),
        (b"localhost?", 400),
        (b"localhost#", 400),
        (b"localhost\\@evil.example", 400),
        (b"user@localhost", 400),
        (b"user:password@localhost", 400),
        (b"localhost:", 400),
        (b"localhost:http", 400),
        (b"localhost:-1", 400),
        (b"localhost:80:80", 400),
        (b"localhost:800000", 400),
        (b"localhost, evil.example", 400),
        (b"localhost evil.example", 400),
        (b"localhost%00", 400),
        (b"l\xc3\xb6calhost", 400),
        (b"\xe2\x93\x9bocalhost", 400),
        (b"[::1", 400),
        (b"[::1]x", 400),
        (b"[::1%25lo]", 400),
        (b"*", 400),
        (b"http://localhost", 400),
    ],
)
def test_only_its_own_names_are_answered(host: bytes, status: int, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % host)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    assert [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3})", received)] == [status]


@pytest.fixture(scope="module")
def port() -> Any:
    with serving(app_of(ScriptedService())) as port:
        yield port


# ---- whom a proxy speaks for


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("6.6.6.6, 192.0.2.1", "192.0.2.1"),
        ("6.6.6.6, 192.0.2.1, 10.1.2.3", "192.0.2.1"),
        ("192.0.2.1,10.1.2.3,10.4.5.6", "192.0.2.1"),
        ("192.0.2.1, 2001:db8:aaaa::7", "192.0.2.1"),
        ("10.1.2.3", "10.1.2.3"),
        ("192.0.2.1:4711", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("6.6.6.6, unknown", None),
        ("unknown, 10.1.2.3", "10.1.2.3"),
        ("", None),
        ("192.0.2.1, ", None),
        ("192.0.2.1\x00", None),
        ("localhost", None),
    ],
)
def test_the_last_address_that_is_no_proxy_is_the_client(forwarded: str, client: str | None) -> None:
    assert to_forwarded_client(forwarded, PROXIES) == client


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_all_addresses_of_one_customer_are_one(address: str, client: str) -> None:
    assert to_client(address) == client


async def tell_client(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers who asks."""
    if scope["type"] == "lifespan":
        for answer in ("lifespan.startup.complete", "lifespan.shutdown.complete"):
            await receive()
            await send({"type": answer})
        return
    body = f"{scope['client'][0]} {scope['scheme']}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


HEADERS = {"x-forwarded-for": "6.6.6.6, 192.0.2.1", "x-forwarded-proto": "https"}


def test_what_a_trusted_proxy_says_is_believed() -> None:
    with serving(tell_client, trusted_proxies=("127.0.0.0/8",)) as port:
        assert httpx.get(f"http://127.0.0.1:{port}/", headers=HEADERS).text == "192.0.2.1 https"
        odd = {"x-forwarded-for": "unknown", "x-forwarded-proto": "javascript"}
        assert httpx.get(f"http://127.0.0.1:{port}/", headers=odd).text == "127.0.0.1 http"


@pytest.mark.parametrize("proxies", [(), ("10.0.0.0/8",)])
def test_what_anybody_else_says_is_not(proxies: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # uvicorn's way
    with serving(tell_client, trusted_proxies=proxies) as port:
        headers = {**HEADERS, "forwarded": "for=192.0.2.1", "x-real-ip": "192.0.2.1"}
        assert httpx.get(f"http://127.0.0.1:{port}/", headers=headers).text == "127.0.0.1 http"


def test_requests_at_once_are_counted_by_the_client_behind_the_proxy() -> None:
    """However many connections the proxy opens, and although its own address is one."""
    inside, out = threading.Semaphore(0), threading.Event()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/wait":
            inside.release()
            while not out.is_set():
                await asyncio.sleep(0.01)
        await tell_client(scope, receive, send)

    def ask(path: str, client: str) -> int:
        headers = {"x-forwarded-for": client}
        return httpx.get(f"http://127.0.0.1:{port}{path}", headers=headers, timeout=20).status_code

    limits: dict[str, Any] = {"trusted_proxies": ("127.0.0.1/32",), "max_connections_per_ip": 2}
    with serving(wait, uncounted_networks=(), **limits) as port, ExitStack() as stack:
        threads = [threading.Thread(target=ask, args=("/wait", "192.0.2.1")) for _ in range(2)]
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        stack.callback(out.set)
        for _ in threads:
            assert inside.acquire(timeout=20)
        assert ask("/", "192.0.2.1") == 429
        assert ask("/", "192.0.2.2") == 200
        out.set()
        for thread in threads:
            thread.join()
        assert ask("/", "192.0.2.1") == 200


@pytest.mark.parametrize("field", ["trusted_proxies", "uncounted_networks"])
@pytest.mark.parametrize("block", ["10.0.0.1/8", "proxy.internal", "10.0.0.0/33", ""])
def test_what_is_no_network_is_refused(field: str, block: str) -> None:
    with pytest.raises(InvalidRequest, match="is no network"):
        HttpLimits(**{field: (block,)})
