"""HTTPS: other people's clients, certificates that are renewed, handshakes that do not end."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import httpx
import pytest
from openai import OpenAI
from starlette.types import ASGIApp

from sightline.config import Tls
from sightline.errors import InvalidRequest
from sightline.server import tls
from sightline.server.tls import Certificate
from tests.api.serving import serving
from tests.api.standin import ScriptedService, app_of
from tests.server.certificates import AUTHORITY, issue, issued, trusting


@pytest.fixture
def files(tmp_path: Path) -> Tls:
    return issued(tmp_path)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "WATCH_S", 0.05)


def app() -> ASGIApp:
    return app_of(ScriptedService())


def serial(port: int, name: str | None = "localhost") -> str:
    """Of the certificate that a new connection is shown."""
    context = trusting()
    context.check_hostname = name is not None
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=name) as secured,
    ):
        certificate = secured.getpeercert()
        assert certificate is not None
        return str(certificate["serialNumber"])


def until_changed(port: int, old: str) -> str:
    for _ in range(1000):
        if (new := serial(port)) != old:
            return new
    raise AssertionError("the certificate stayed the same")


def test_the_openai_sdk_asks_over_https(files: Tls) -> None:
    with serving(app(), Certificate(files)) as port, httpx.Client(verify=trusting()) as http:
        client = OpenAI(base_url=f"https://localhost:{port}/v1", api_key="none", http_client=http)
        asked = [{"role": "user", "content": "?"}]
        answer = client.chat.completions.create(model="m", messages=asked)  # type: ignore[call-overload]
        stream = client.chat.completions.create(model="m", messages=asked, stream=True)  # type: ignore[call-overload]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == answer.choices[0].message.content != ""


def test_a_client_that_names_no_server_gets_the_certificate(files: Tls) -> None:
    with serving(app(), Certificate(files)) as port:
        assert serial(port, name=None) == serial(port)


def test_a_renewed_certificate_is_shown_and_no_request_fails(files: Tls) -> None:
    statuses: list[int] = []
    over = threading.Event()

    def ask(port: int, keep: bool) -> None:
        context = trusting()
        with httpx.Client(verify=context, base_url=f"https://localhost:{port}") as client:
            while not over.is_set():
                statuses.append(client.get("/health", headers={} if keep else {"connection": "close"}).status_code)

    with serving(app(), Certificate(files)) as port:
        askers = [threading.Thread(target=ask, args=(port, keep)) for keep in (True, False)]
        for asker in askers:
            asker.start()
        try:
            shown = serial(port)
            for _ in range(3):
                issue(files)
                shown = until_changed(port, shown)
        finally:
            over.set()
            for asker in askers:
                asker.join()
    assert len(statuses) > 20
    assert set(statuses) == {200}


def test_a_broken_renewal_leaves_the_certificate_and_is_told_once(files: Tls, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sightline.server.tls")

    def told() -> list[str]:
        return [record.message for record in caplog.records if record.name == "sightline.server.tls"]

    with serving(app(), Certificate(files)) as port:
        before = serial(port)
        Path(files.key).write_text("no key")
        while not told():
            assert serial(port) == before
        for _ in range(20):  # several looks at the same files
            assert serial(port) == before
        assert len(told()) == 1
        assert "the one before stays" in told()[0]
        issue(files)
        assert until_changed(port, before) != before
    assert len(told()) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_versions_of_tls_are_not_spoken(files: Tls) -> None:
    context = trusting()
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with serving(app(), Certificate(files)) as port, socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            context.wrap_socket(plain, server_hostname="localhost")
        assert serial(port)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"], ids=["silence", "a part", "HTTP"])
def test_a_handshake_that_does_not_end_is_ended(files: Tls, sent: bytes) -> None:
    with (
        serving(app(), Certificate(files), head_s=0.3) as port,
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
    ):
        plain.sendall(sent)
        try:
            while plain.recv(1024):
                pass
        except ConnectionResetError:
            pass
        assert serial(port)


def test_handshakes_count_as_connections(files: Tls) -> None:
    with serving(app(), Certificate(files), max_connections=3) as port:
        idle = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(3)]
        with pytest.raises((ssl.SSLError, ConnectionError)):
            serial(port)
        for each in idle:
            each.close()
        while True:
            try:
                assert serial(port)
                break
            except (ssl.SSLError, ConnectionError):
                continue


@pytest.mark.parametrize("fault", ["missing", "no PEM", "another's key", "a password"])
def test_what_cannot_be_used_is_refused_at_start(files: Tls, tmp_path: Path, fault: str) -> None:
    key = Path(files.key)
    if fault == "missing":
        key.unlink()
    elif fault == "no PEM":
        key.write_text("no key")
    elif fault == "another's key":
        key.write_bytes(AUTHORITY.issue_cert("localhost").private_key_pem.bytes())
    else:
        key.write_bytes(with_password(key.read_bytes()))
    with pytest.raises(InvalidRequest, match=r"key\.pem cannot be used: [a-z]"):
        Certificate(files)


def with_password(key: bytes) -> bytes:
    from cryptography.hazmat.primitives import serialization as s

    loaded = s.load_pem_private_key(key, None)
    return loaded.private_bytes(
        s.Encoding.PEM, s.PrivateFormat.TraditionalOpenSSL, s.BestAvailableEncryption(b"secret")
    )
