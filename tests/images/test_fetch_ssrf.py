"""Server-side request forgery: whatever a client or a server it names writes, nobody is called who must not be."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from sightline.config import FetchPolicy, ImageLimits
from sightline.errors import ImageFetchFailed, ImageForbidden
from sightline.images import addresses, download
from sightline.images.fetch import Fetcher
from tests.images.web import (
    HOME,
    LOOPBACK,
    Names,
    canary,
    fetcher,
    identity,
    redirect,
    reply,
    serving,
    trust,
    was_called,
)

pytestmark = pytest.mark.anyio

PICTURE = bytes(range(256)) * 400

# --- nobody is called ------------------------------------------------------------------------------------------------

SPELLINGS = [
    r"127.0.0.1",
    r"127.0.0.1.",
    r"127.1",
    r"127.0.1",
    r"2130706433",
    r"0x7f000001",
    r"0x7f.1",
    r"0177.0.0.1",
    r"017700000001",
    r"0x7F.0x0.0x0.0x1",
    r"127.000.000.001",
    r"127.127.127.127",
    r"0",
    r"00000000",
    r"0.0.0.0",
    r"127.0.0.1:443",
    r"127.0.0.1:",
    r"127.0.0.1:+80",
    r"127.0.0.1:80:80",
    r"①②⑦.0.0.1",
    r"127。0。0。1",
    r"１２７.0.0.1",
    r"ⓛocalhost",
    r"localhost",
    r"LOCALHOST",
    r"localhost.",
    r"loc%61lhost",
    r"[::1]",
    r"[::]",
    r"[0:0:0:0:0:0:0:1]",
    r"[::127.0.0.1]",
    r"[::ffff:127.0.0.1]",
    r"[::ffff:7f00:1]",
    r"[::ffff:0:7f00:1]",
    r"[127.0.0.1]",
    r"[64:ff9b::7f00:1]",
    r"[64:ff9b:1::7f00:1]",
    r"[2002:7f00:1::]",
    r"[fe80::1%25lo]",
    r"[fe80::1%lo]",
    r"[fec0::1]",
    r"[ff02::1]",
    r"localtest.me",
    r"127.0.0.1.nip.io",
    r"cdn.example",
    r"a.cdn.example",
    r"two-faced.cdn.example",
    r"user@127.0.0.1",
    r"cdn.example@127.0.0.1",
    r"cdn.example:80@127.0.0.1",
    r"cdn.example%40127.0.0.1",
    r"127.0.0.1%2fcdn.example",
    r"127.0.0.1\@cdn.example",
    r"127.0.0.1\.cdn.example",
    r"127.0.0.1#.cdn.example",
    r"127.0.0.1?.cdn.example",
    r"127.0.0.1;.cdn.example",
    r"169.254.169.254",
    r"2852039166",
    r"0xa9fea9fe",
    r"[::ffff:a9fe:a9fe]",
    r"[fd00:ec2::254]",
    r"metadata.google.internal",
]
SPELLINGS += ["127.0.0.1 cdn.example", "127.0.0.1\tcdn.example", "127.0.0.1\r\ncdn.example", "127.0.0.1\0.cdn.example"]
ELSEWHERE = [
    r"http:/\127.0.0.1/",
    r"http:\\127.0.0.1\a.png",
    r"http:///127.0.0.1/",
    r"http:127.0.0.1/",
    r"http:/127.0.0.1/",
    r"//127.0.0.1/",
    r"https://https://127.0.0.1/",
    r"http+unix://%2Frun/",
    r"ws://127.0.0.1/",
    r"ldap://127.0.0.1/",
    r"jar:http://127.0.0.1!/",
    r"ftp://127.0.0.1/",
    r"gopher://127.0.0.1/_GET",
    r"file:///etc/passwd",
    r"file://127.0.0.1/a",
    r"dict://127.0.0.1/",
    r"about:blank",
    r"unix:/run/docker.sock",
    r"blob:http://127.0.0.1/x",
    r"view-source:http://127.0.0.1/",
    r"javascript:fetch('http://127.0.0.1')",
]
ELSEWHERE += ["\thttp://127.0.0.1/", "http\t://127.0.0.1/", "ht\ntp://127.0.0.1/", " http://127.0.0.1/"]
CORPUS = [
    *(f"http://{host}/a.png" for host in SPELLINGS),
    *(f"https://{host}/a.png" for host in ("127.0.0.1", "0x7f.1", "[::1]", "localhost", "cdn.example")),
    *ELSEWHERE,
]
TO_LOOPBACK = {"localhost", "localtest.me", "127.0.0.1.nip.io", "cdn.example", "a.cdn.example"}

POLICIES = {
    "off": {},
    "any public": {"any_public": True},
    "named hosts": {"allow_hosts": ("cdn.example", "*.cdn.example")},
    "both, and another network": {"any_public": True, "allow_hosts": ("localhost",), "allow_networks": ("10.0.0.0/8",)},
}


class LoopbackNames(Names):
    def __init__(self) -> None:
        super().__init__()
        self._table = {name: [HOME] for name in TO_LOOPBACK}
        self._table["two-faced.cdn.example"] = [["93.184.216.34", "127.0.0.1"]]
        self._table["metadata.google.internal"] = [["169.254.169.254"]]


@pytest.fixture
def trap(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A canary that stands at the ordinary port of both schemes, so that only the address keeps us from it."""
    with canary() as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr(addresses, "_DEFAULT_PORTS", {"http": port, "https": port})
        yield listener


@pytest.mark.parametrize("policy", POLICIES)
async def test_nobody_is_called(policy: str, trap: socket.socket) -> None:
    assert len(CORPUS) > 90
    ours = Fetcher(ImageLimits(), FetchPolicy(**POLICIES[policy]), resolver=LoopbackNames())
    for url in CORPUS:
        with pytest.raises(ImageForbidden, match=r"data: URI|data:image/png") as caught:
            await ours.fetch(url)
        assert caught.value.code == "invalid_image_url"
        assert not any(told in caught.value.message for told in ("127.", "169.254", "cdn", "localhost", "::")), url
        assert not was_called(trap), url


async def test_the_trap_would_catch_a_call(trap: socket.socket) -> None:
    policy = FetchPolicy(any_public=True, allow_networks=LOOPBACK, connect_s=0.2, total_s=0.2)
    ours = Fetcher(ImageLimits(), policy, resolver=LoopbackNames())
    for host in ("0x7f.1", "localhost", "2130706433"):
        with pytest.raises(ImageFetchFailed, match="in time"):
            await ours.fetch(f"http://{host}/a.png")
        assert was_called(trap), host


async def test_a_name_that_is_nowhere_and_one_in_private_are_told_alike() -> None:
    ours = Fetcher(ImageLimits(), FetchPolicy(any_public=True), resolver=Names(jenkins__internal=[["10.0.0.7"]]))
    told = []
    for host in ("jenkins.internal", "no-such-host.internal"):
        with pytest.raises(ImageForbidden) as caught:
            await ours.fetch(f"http://{host}/")
        told.append(caught.value.message)
    assert told[0] == told[1]


async def test_rebinding_finds_no_second_lookup(trap: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Public when it is checked, 127.0.0.1 when anybody asks again: nobody does, and the public one is connected to."""
    connected: list[str] = []

    class Backend:
        async def connect_tcp(self, host: str, port: int, timeout: float | None) -> None:
            connected.append(host)
            raise download.http.ConnectError

    monkeypatch.setattr(download.http, "AnyIOBackend", Backend)
    names = Names(rebind__test=[["93.184.216.34"], HOME])
    ours = Fetcher(ImageLimits(), FetchPolicy(any_public=True), resolver=names)
    with pytest.raises(ImageFetchFailed, match="cannot be reached"):
        await ours.fetch("http://rebind.test/a.png")
    assert (names.asked, connected) == (["rebind.test"], ["93.184.216.34"])
    with pytest.raises(ImageForbidden):
        await ours.fetch("http://rebind.test/a.png")  # and the next request, which asks anew, is refused
    assert len(connected) == 1
    assert not was_called(trap)


# --- redirects -------------------------------------------------------------------------------------------------------


async def test_redirects_are_not_followed() -> None:
    async with serving(redirect("/b.png")) as site:
        with pytest.raises(ImageFetchFailed, match="redirects"):
            await fetcher(site).fetch(f"http://pictures.test:{site.port}/a.png")
    assert site.connections == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_as_many_as_the_operator_says_are(status: int) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hops = ["b.png?x", f"http://other.pictures.test:{site.port}/c", "/d#e"]
        seen = len(site.requests)
        writer.write(redirect(hops[seen - 1], status) if seen <= len(hops) else reply(PICTURE))

    async with serving(answer) as site:
        assert (await fetcher(site, max_redirects=3).fetch(f"http://pictures.test:{site.port}/x/a")).content == PICTURE
        assert [request.split()[1] for request in site.requests] == [b"/x/a", b"/x/b.png?x", b"/c", b"/d"]
        site.requests.clear()
        with pytest.raises(ImageFetchFailed, match="further than"):
            await fetcher(site, max_redirects=2).fetch(f"http://pictures.test:{site.port}/x/a")


@pytest.mark.parametrize(
    "to",
    [
        "http://127.0.0.1:{trap}/",
        "http://localhost:{trap}/",
        "//127.0.0.1:{trap}/",
        "http://pictures.test:{trap}/",
        "http://pictures.test:{port}@127.0.0.1:{trap}/",
        "http:\\\\127.0.0.1:{trap}\\",
        "http://[::ffff:127.0.0.1]:{trap}/",
        "http://inside.pictures.test:{port}/",
        "file:///etc/passwd",
        "ftp://pictures.test/",
        "http://[",
        "",
        "\u00fc\u00fc",
    ],
)
async def test_each_redirect_is_judged_like_a_url(to: str) -> None:
    with canary() as trap:
        port = trap.getsockname()[1]

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(redirect(to.format(trap=port, port=site.port)))

        async with serving(answer) as site:
            with pytest.raises((ImageFetchFailed, ImageForbidden)) as caught:
                await fetcher(site, max_redirects=3).fetch(f"http://pictures.test:{site.port}/")
        assert not was_called(trap)
        assert str(port) not in caught.value.message
        assert site.connections == (1 if to else 4)  # an empty one leads to where it came from


async def test_none_leads_from_https_to_http() -> None:
    async with serving(reply(PICTURE)) as plain:
        to = redirect(f"http://pictures.test:{plain.port}/")
        async with serving(to, identity("pictures.test")) as site:
            hosts = (f"pictures.test:{site.port}", f"pictures.test:{plain.port}")
            ours = fetcher(site, tls=trust(), max_redirects=1, allow_hosts=hosts)
            with pytest.raises(ImageFetchFailed, match="https: to http:"):
                await ours.fetch(f"https://pictures.test:{site.port}/")
    assert (site.connections, plain.connections) == (1, 0)
