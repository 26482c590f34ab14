"""`sightline doctor`: what is well, what is not, and what to do about it."""

from __future__ import annotations

import datetime
import http.server
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from sightline.cli import doctor_machine as machine
from sightline.cli import doctor_settings as of_settings
from sightline.cli import main
from sightline.cli.doctor_findings import Check, examine, ok, problem
from sightline.config import AdminEndpoint, Settings, Tls, Tracing
from tests.jobs.redis_server import BINARY, WHY_NOT, RedisServer

NOW = datetime.datetime.now(datetime.UTC)
GIB = 1024**3


def statuses(found: Iterator[tuple[str, ...]]) -> list[str]:
    return [each[0] for each in found]


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sightline.yaml"
    file.write_text(f"port: 0\ndata_dir: {tmp_path / 'data'}\nmodels:\n- {{name: stand-in, engine: fake}}\n")
    began = time.monotonic()
    status = main(["doctor", str(file), "--json"])
    assert time.monotonic() - began < 15, "it is promised within ten seconds, on a machine that is not busy"
    report = json.loads(capsys.readouterr().out)
    found = {each["check"]: each for each in report["checks"]}
    assert {"cpu", "memory", "open files", "clock", "openvino", "peek", "engines", "extras", "port", "keys"} <= set(
        found
    )
    assert found["peek"]["status"] in ("ok", "warning"), found["peek"]  # a warning where the machine is busy
    assert "stand-in on fake" in found["configuration"]["message"]
    assert found["data directory"]["status"] == "ok"
    assert not (tmp_path / "data").exists(), "it only looks"
    assert status == 0
    assert report["ok"] is True
    assert all(each["remedy"] for each in report["checks"] if each["status"] != "ok")


def test_a_file_with_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sightline.cli.doctor.machine_checks", lambda: ())
    file = tmp_path / "sightline.yaml"
    file.write_text("prot: 1\nmodels:\n- {name: a, engine: fake, options: {x: 1}}\n")
    assert main(["doctor", str(file)]) == 1
    out = capsys.readouterr().out
    assert "did you mean" in out.lower()
    assert "models[0].options.x" in out
    assert "2 problems." in out


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"models: [", b""])
def test_a_file_that_is_none(tmp_path: Path, content: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.cli.doctor.machine_checks", lambda: ())
    file = tmp_path / "sightline.yaml"
    if content is not None:
        file.write_bytes(content)
    assert main(["doctor", str(file)]) == 1


def test_a_check_that_breaks_or_hangs_stops_no_other() -> None:
    ended = threading.Event()

    def breaks() -> Iterator[tuple[str, ...]]:
        raise OSError(5, "input/output error")

    def hangs() -> Iterator[tuple[str, ...]]:
        ended.wait(20)
        yield ok("late")

    checks = [
        Check("a", breaks),
        Check("b", hangs),
        Check("c", lambda: [ok("well")]),
        Check("d", lambda: [problem("p", "r")]),
    ]
    found = list(examine(checks, 0.2))
    ended.set()
    assert [(each.check, each.status) for each in found] == [
        ("a", "problem"),
        ("b", "warning"),
        ("c", "ok"),
        ("d", "problem"),
    ]
    assert "OSError" in found[0].message


@pytest.mark.parametrize(
    ("cpuinfo", "kind", "status"),
    [
        ("flags\t\t: fpu sse4_2 avx avx2", "x86_64", "ok"),
        ("flags\t\t: fpu sse4_2 avx", "x86_64", "warning"),
        ("Features\t: fp asimd", "aarch64", "ok"),
        ("", "x86_64", "ok"),
    ],
)
def test_cpu(cpuinfo: str, kind: str, status: str) -> None:
    assert statuses(machine.cpu(cpuinfo, kind)) == [status]


def test_memory_files_and_clock() -> None:
    assert statuses(machine.memory(4 * GIB)) == statuses(machine.memory(None)) == ["ok"]
    assert statuses(machine.memory(GIB // 2)) == ["warning"]
    assert statuses(machine.open_files(1024, 524288)) == ["ok"]
    assert statuses(machine.open_files(256, 1024)) == ["warning"]
    assert statuses(machine.clock(NOW)) == ["ok"]
    assert statuses(machine.clock(datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC))) == ["problem"]


@pytest.mark.parametrize(
    ("named", "status"),
    [
        ({}, "ok"),
        ({"http": "http://proxy:3128"}, "warning"),
        ({"http": "http://proxy:3128", "no": "localhost"}, "warning"),
        ({"all": "socks5://proxy:1080", "no": "localhost,127.0.0.1"}, "ok"),
        ({"http": "http://proxy:3128", "no": "*"}, "ok"),
    ],
)
def test_proxies(named: dict[str, str], status: str) -> None:
    assert statuses(machine.proxies(named)) == [status]


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        taken.close()
        assert statuses(of_settings.ports(Settings(port=port))) == ["ok"]
    with Answering({"status": "ok"}) as port:
        assert statuses(of_settings.ports(Settings(port=port))) == ["warning"], "a Sightline"
        assert statuses(of_settings.ports(Settings(port=0, admin=AdminEndpoint(port=port)))) == ["ok", "warning"]
    with Answering(["something else"]) as port:
        assert statuses(of_settings.ports(Settings(port=port))) == ["problem"]


def test_keys_where_other_machines_reach_it(tmp_path: Path) -> None:
    settings = Settings(host="0.0.0.0", data_dir=str(tmp_path))
    assert statuses(of_settings.keys(settings)) == ["problem"]
    assert main(["keys", "create", "shop", "--data-dir", str(tmp_path)]) == 0
    assert statuses(of_settings.keys(settings)) == ["ok"]
    assert statuses(of_settings.keys(Settings())) == ["ok"]


@pytest.mark.parametrize("below", ["", "not/there/yet"])
def test_the_data_directory(tmp_path: Path, below: str) -> None:
    found = list(of_settings.data_directory(Settings(data_dir=str(tmp_path / below))))
    assert [each[0] for each in found] == ["ok"]
    assert " ms" in found[0][1]
    assert list(tmp_path.iterdir()) == []


def test_a_data_directory_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert statuses(of_settings.data_directory(Settings(data_dir=str(file)))) == ["problem"]
    assert statuses(of_settings.data_directory(Settings(data_dir="/proc/1/nowhere"))) == ["problem"]


def certificate(directory: Path, ends: datetime.datetime) -> Tls:
    made = trustme.CA().issue_cert("localhost", not_after=ends, not_before=NOW - datetime.timedelta(days=30))
    (directory / "c.pem").write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
    (directory / "k.pem").write_bytes(made.private_key_pem.bytes())
    (directory / "k.pem").chmod(0o600)
    return Tls(certificate=str(directory / "c.pem"), key=str(directory / "k.pem"))


@pytest.mark.parametrize(("days", "status"), [(90, "ok"), (3, "warning"), (-1, "problem")])
def test_a_certificate(tmp_path: Path, days: int, status: str) -> None:
    ends = NOW + datetime.timedelta(days=days)
    found = list(of_settings.certificate(certificate(tmp_path, ends), NOW))
    assert [each[0] for each in found] == [status], found
    assert days < 0 or f"{ends:%Y-%m-%d}" in found[0][1]


def test_a_key_for_everybody_and_one_that_does_not_fit(tmp_path: Path) -> None:
    tls = certificate(tmp_path, NOW + datetime.timedelta(days=90))
    os.chmod(tls.key, 0o644)
    assert statuses(of_settings.certificate(tls, NOW)) == ["ok", "warning"]
    Path(tls.key).write_bytes(trustme.CA().private_key_pem.bytes())
    assert statuses(of_settings.certificate(tls, NOW)) == ["problem"]


def test_redis_that_is_away() -> None:
    found = list(of_settings.redis("redis://:secret@127.0.0.1:1/0"))
    assert [each[0] for each in found] == ["problem"]
    assert "secret" not in "".join(found[0])


@pytest.mark.skipif(BINARY is None, reason=WHY_NOT)
@pytest.mark.parametrize(("kept", "statuses_told"), [("yes", ["ok"]), ("no", ["warning", "ok"])])
def test_redis_that_keeps_or_forgets(tmp_path: Path, kept: str, statuses_told: list[str]) -> None:
    server = RedisServer(tmp_path, "--appendonly", kept).start()
    try:
        assert statuses(of_settings.redis(server.url)) == statuses_told
    finally:
        server.stop()


def test_a_collector() -> None:
    def found(port: int) -> list[str]:
        return statuses(of_settings.collector(Settings(tracing=Tracing(otlp_endpoint=f"http://127.0.0.1:{port}"))))

    with Answering({}) as port:
        assert found(port) == ["ok"]
    with Answering({}, status=404) as port:
        assert found(port) == ["warning"]
    assert found(1) == ["warning"]


class Answering:
    """A server that answers anything with this."""

    def __init__(self, answer: object, status: int = 200) -> None:
        class Answers(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)

    def __enter__(self) -> int:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self._server.server_address[1]

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
