"""Where pictures may be fetched from: each rule, on text alone. No test here opens a connection."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from sightline.config import FetchPolicy
from sightline.errors import ImageForbidden
from sightline.images.addresses import Gate, is_public, to_target

PUBLIC = ["93.184.216.34", "8.8.8.8", "1.1.1.1", "192.0.1.1", "100.63.255.255", "100.128.0.0", "172.32.0.1", "11.0.0.1"]
PUBLIC += ["2606:4700::1111", "2a00:1450:4001:81b::200e", "2001:200::1", "2620:fe::fe"]

PRIVATE = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "127.0.0.1", "127.255.255.254", "172.16.0.1", "172.31.255.1"),
    *("192.168.0.1", "169.254.169.254", "169.254.0.1", "100.64.0.1", "100.100.100.200", "100.127.255.255"),
    *("192.0.0.0", "192.0.0.8", "192.0.0.9", "192.0.0.10", "192.0.0.192", "192.0.2.1", "192.88.99.1", "168.63.129.16"),
    *("198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250"),
    *("240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:127.0.0.1"),
    *("64:ff9b::a9fe:a9fe", "64:ff9b::808:808", "64:ff9b:1::1", "64:ff9b:1:ffff::7f00:1"),
    *("2002:7f00:1::", "2002:808:808::1", "2001::1", "2001:0:7f00:1::", "2001:db8::1", "3fff::1", "100::1", "5f00::1"),
    *("fc00::1", "fd00:ec2::254", "fd20:ce::254", "fe80::1", "febf::1", "fec0::1", "ff02::1", "ff0e::1"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize("address", PRIVATE)
def test_every_other_address(address: str) -> None:
    assert not is_public(ip_address(address))
    with pytest.raises(ImageForbidden, match="not at an address") as caught:
        Gate(FetchPolicy(any_public=True)).check_addresses([address])
    assert address not in caught.value.message


@pytest.mark.parametrize("addresses", [["8.8.8.8", "10.0.0.1"], ["10.0.0.1", "8.8.8.8"], ["8.8.8.8", "::1"], []])
def test_one_bad_address_spoils_them_all(addresses: list[str]) -> None:
    with pytest.raises(ImageForbidden):
        Gate(FetchPolicy(any_public=True)).check_addresses(addresses)


def test_good_addresses_keep_their_order_and_lose_their_twins() -> None:
    found = Gate(FetchPolicy(any_public=True)).check_addresses(["8.8.8.8", "2606:4700::1111", "8.8.8.8", "1.1.1.1"])
    assert [str(address) for address in found] == ["8.8.8.8", "2606:4700::1111", "1.1.1.1"]


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("10.1.0.0/16", "10.1.2.3", "10.2.0.1"),
        ("127.0.0.0/8", "127.0.0.1", "::1"),
        ("127.0.0.0/8", "127.0.0.1", "::ffff:127.0.0.1"),
        ("fd00:1::/32", "fd00:1::5", "fd00:2::5"),
        ("64:ff9b::/96", "64:ff9b::808:808", "64:ff9b:1::1"),
    ],
)
def test_a_network_is_the_way_to_its_own_addresses_only(network: str, inside: str, outside: str) -> None:
    gate = Gate(FetchPolicy(any_public=True, allow_networks=(network,)))
    assert gate.check_addresses([inside, "8.8.8.8"])
    with pytest.raises(ImageForbidden):
        gate.check_addresses([outside])


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192"),
        *("fd00:ec2::254", "fd20:ce::254", "64:ff9b::a9fe:a9fe", "::ffff:169.254.169.254", "2002:a9fe:a9fe::"),
    ],
)
def test_no_network_leads_to_the_machine_s_credentials(address: str) -> None:
    gate = Gate(FetchPolicy(any_public=True, allow_networks=("0.0.0.0/0", "::/0")))
    assert gate.check_addresses(["127.0.0.1", "169.254.1.1", "fd00::1"])
    with pytest.raises(ImageForbidden):
        gate.check_addresses([address])


def test_an_address_with_a_zone_is_nowhere() -> None:
    gate = Gate(FetchPolicy(any_public=True, allow_networks=("fe80::/10",)))
    with pytest.raises(ImageForbidden):
        gate.check_addresses(["fe80::1%eth0"])


# --- URLs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "rebuilt", "authority"),
    [
        ("https://example.com/a.png", "https://example.com/a.png", "example.com"),
        ("HTTPS://EXAMPLE.com./A.png?B=c#frag", "https://example.com/A.png?B=c", "example.com"),
        ("http://example.com", "http://example.com/", "example.com"),
        ("http://example.com?x=/../y", "http://example.com/?x=/../y", "example.com"),
        ("https://example.com:443/", "https://example.com/", "example.com"),
        ("http://example.com:443/", "http://example.com:443/", "example.com:443"),
        ("http://example.com:0080/", "http://example.com/", "example.com"),
        ("http://[2606:4700:0:0::1111]:80/x", "http://[2606:4700::1111]/x", "[2606:4700::1111]"),
        (
            "https://xn--bcher-kva.example/%C3%BC.png",
            "https://xn--bcher-kva.example/%C3%BC.png",
            "xn--bcher-kva.example",
        ),
        (
            "https://a_b.example/x@y//z:1?u=http://127.0.0.1/",
            "https://a_b.example/x@y//z:1?u=http://127.0.0.1/",
            "a_b.example",
        ),
    ],
)
def test_a_url_is_rebuilt_from_its_parts(url: str, rebuilt: str, authority: str) -> None:
    target = to_target(url)
    assert (target.url, target.authority) == (rebuilt, authority)
    assert to_target(rebuilt) == target


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http:/\\127.0.0.1/", "backslashes"),
        ("http://a.example\\@b.example/", "backslashes"),
        ("http://ⓛocalhost/", "outside ASCII"),
        ("http://①②⑦.0.0.1/", "outside ASCII"),
        ("http://bücher.example/", "xn--"),
        ("http://a.example/ü.png", "percent-encode"),
        ("http://a.example/a b.png", "spaces"),
        ("http://a.example/\r\nHost: b", "control"),
        ("http://a.example/\t", "control"),
        ("http://a.ex\0ample/", "control"),
        ("http://user@a.example/", "user name"),
        ("http://user:pass@a.example/", "user name"),
        ("http://a.example:80@b.example/", "user name"),
        ("http://@a.example/", "user name"),
        ("http://", "form"),
        ("http:///a.png", "form"),
        ("http:a.example/", "form"),
        ("http:/a.example/", "form"),
        ("http://?x", "form"),
        ("http://:80/", "form"),
        ("http://a.example:/", "form"),
        ("http://a.example:http/", "form"),
        ("http://a.example:+80/", "form"),
        ("http://a.example:8 0/", "spaces"),
        ("http://a.example:0/", "port"),
        ("http://a.example:65536/", "port"),
        ("http://a.example:800000/", "form"),
        ("http://a.example%2eb.example/", "form"),
        ("http://a.example;b.example/", "form"),
        ("http://[::1/", "form"),
        ("http://::1/", "form"),
        ("http://[fe80::1%25eth0]/", "form"),
        ("http://[v1.a]/", "form"),
        ("http://[:::]/", "brackets"),
        ("http://[::1]a/", "form"),
        ("http://a..example/", "host name"),
        ("http://./", "host name"),
        (f"http://{'a' * 64}.example/", "host name"),
        (f"http://{'a.' * 130}example/", "host name"),
        (f"http://a.example/{'a' * 2048}", "longer than 2,048"),
        ("ftp://a.example/", "form"),
        ("https:https://a.example/", "form"),
    ],
)
def test_what_is_no_plain_url(url: str, problem: str) -> None:
    with pytest.raises(ImageForbidden, match=problem) as caught:
        to_target(url)
    assert caught.value.message.endswith("send the picture as a data: URI.")
    assert "example" not in caught.value.message


# --- hosts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "allowed", "refused"),
    [
        (
            "cdn.example",
            ["http://cdn.example/", "https://CDN.example./x", "http://cdn.example:443/"],
            ["http://a.cdn.example/", "http://xcdn.example/", "http://cdn.example.evil/", "http://cdn.example:8080/"],
        ),
        (
            "*.cdn.example",
            ["http://a.cdn.example/", "http://a.b.cdn.example/"],
            ["http://cdn.example/", "http://xcdn.example/", "http://a.cdn.example.evil/"],
        ),
        (
            "localhost:9000",
            ["http://localhost:9000/", "https://localhost:9000/"],
            ["http://localhost/", "http://localhost:9001/"],
        ),
        ("*.in.example:81", ["http://a.in.example:81/"], ["http://a.in.example/", "http://in.example:81/"]),
        ("[0:0::1]:9000", ["http://[::1]:9000/"], ["http://[::1]/", "http://[::2]:9000/"]),
        ("10.0.0.1", ["http://10.0.0.1/"], ["http://167772161/", "http://10.1/", "http://[::ffff:10.0.0.1]/"]),
    ],
)
def test_named_hosts(entry: str, allowed: list[str], refused: list[str]) -> None:
    gate = Gate(FetchPolicy(allow_hosts=("other.example", entry)))
    for url in allowed:
        assert gate.admit(url) == to_target(url)
    for url in refused:
        with pytest.raises(ImageForbidden, match=r"hosts .and ports. that its operator named") as caught:
            gate.admit(url)
        assert "example" not in caught.value.message


def test_any_public_means_the_ports_of_the_web_and_those_of_named_hosts() -> None:
    gate = Gate(FetchPolicy(any_public=True, allow_hosts=("minio.example:9000",)))
    for url in ("http://a.example/", "https://b.example/", "http://minio.example:9000/", "http://minio.example/"):
        gate.admit(url)
    for url in ("http://a.example:22/", "http://a.example:9000/", "http://minio.example:9001/"):
        with pytest.raises(ImageForbidden, match="ports 80 and 443"):
            gate.admit(url)


def test_https_only() -> None:
    gate = Gate(FetchPolicy(any_public=True, allow_http=False))
    gate.admit("https://a.example/")
    with pytest.raises(ImageForbidden, match="https: only"):
        gate.admit("http://a.example/")


@pytest.mark.parametrize("url", ["https://example.com/", "http:/\\127.0.0.1/", "http://user@x/"])
def test_off_is_told_before_anything_else(url: str) -> None:
    with pytest.raises(
        ImageForbidden, match=r"^remote pictures are off on this server; send the picture as a data: URI"
    ):
        Gate(FetchPolicy()).admit(url)
