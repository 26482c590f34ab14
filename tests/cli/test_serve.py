"""`sightline serve`: where it listens, and what it refuses to do unasked."""

from __future__ import annotations

import argparse
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sightline.cli import main
from sightline.cli.serve import add_arguments, listen, to_settings
from sightline.config import MIB, FetchPolicy, PictureSize, Settings
from sightline.errors import InvalidRequest


def settings(*argv: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return to_settings(parser.parse_args(argv))


def test_without_arguments_it_is_the_embedded_model_on_loopback() -> None:
    made = settings()
    assert (made.host, made.port, [m.name for m in made.models]) == ("127.0.0.1", 8000, ["peek"])
    assert "localhost" in made.allowed_hosts


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--engine", "fake", "--option", "step=1"), "--option step: .* Did you mean step_s"),
        (("--engine", "fake", "--option", "step_s=soon"), "step_s"),
        (("--engine", "easydel", "--model", "."), "easydel needs .*sightline engine install easydel"),
    ],
)
def test_what_would_fail_in_the_engines_process_again_and_again_is_told_at_once(
    argv: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        settings(*argv)


def test_the_servers_own_process_loads_no_engines_library() -> None:
    code = (
        "import sys; from tests.cli.test_serve import settings; settings(); "
        "sys.exit(bool({'openvino', 'torch'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_an_open_address_needs_insistence(host: str) -> None:
    with pytest.raises(InvalidRequest, match="--open-to-anyone"):
        settings("--host", host)
    assert settings("--host", host, "--open-to-anyone").host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"])
def test_loopback_does_not(host: str) -> None:
    assert settings("--host", host).host == host


@pytest.mark.parametrize(
    ("argv", "policy"),
    [
        ([], FetchPolicy()),
        (["--fetch", "off"], FetchPolicy()),
        (["--fetch", "any-public"], FetchPolicy(any_public=True)),
        (
            ["--fetch", "CDN.example.com, *.example.org,localhost:9000,[::1]:81"],
            FetchPolicy(allow_hosts=("cdn.example.com", "*.example.org", "localhost:9000", "[::1]:81")),
        ),
        (
            ["--fetch", "any-public,minio:9000", "--fetch-network", "10.1.0.0/16", "--fetch-network", "fd00:1::/32"],
            FetchPolicy(any_public=True, allow_hosts=("minio:9000",), allow_networks=("10.1.0.0/16", "fd00:1::/32")),
        ),
    ],
)
def test_whose_pictures_are_fetched(argv: list[str], policy: FetchPolicy) -> None:
    made = settings(*argv).fetch
    assert made == policy
    assert made.enabled == (policy != FetchPolicy())


def test_the_environment_may_say_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_FETCH", "cdn.example.com")
    assert settings().fetch.allow_hosts == ("cdn.example.com",)
    assert not settings("--fetch", "off").fetch.enabled


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--fetch", ""], "'off', 'any-public' or hosts"),
        (["--fetch", "off,cdn.example.com"], "'off', 'any-public' or hosts"),
        (["--fetch", "cdn.example.com,,"], "'off', 'any-public' or hosts"),
        (["--fetch", "https://cdn.example.com"], "'https://cdn.example.com' names no host"),
        (["--fetch", "cdn.example.com/pictures"], "names no host"),
        (["--fetch", "*"], "names no host"),
        (["--fetch", "a.*.example.com"], "names no host"),
        (["--fetch", "bücher.example"], "names no host"),
        (["--fetch", "localhost:0"], "names no host"),
        (["--fetch", "localhost:65536"], "names no host"),
        (["--fetch", "::1"], "names no host"),
        (["--fetch", "[:::]"], "names no host"),
        (["--fetch", "10.0.0.0/8"], "names no host"),
        (["--fetch", "any-public", "--fetch-network", "10.1.2.3/16"], "'10.1.2.3/16' is no network"),
        (["--fetch", "any-public", "--fetch-network", "minio"], "'minio' is no network"),
        (["--fetch-network", "10.1.0.0/16"], "Name the hosts too"),
    ],
)
def test_a_fetch_policy_that_cannot_be_meant(argv: list[str], problem: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(problem)) as caught:
        settings(*argv)
    assert caught.value.param == "fetch"


@pytest.mark.parametrize(
    "values",
    [
        {"max_redirects": 4},
        {"max_redirects": -1},
        {"max_at_once": 0},
        {"connect_s": 0.0},
        {"connect_s": 3.0, "total_s": 2.0},
    ],
)
def test_figures_that_cannot_be_meant(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="fetch policy"):
        FetchPolicy(**values)


def test_a_taken_port_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--engine", "fake", "--port", port]) == 1
    assert f"Cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_how_large_pictures_are_and_how_many_are_kept() -> None:
    made = settings("--image-max-pixels", "90000", "--max-pixels", "50000", "--image-cache-mib", "64")
    assert made.picture_size == PictureSize(max_pixels=90_000)
    assert made.models[0].picture_size == PictureSize(max_pixels=50_000)
    assert made.images.cache_bytes == 64 * MIB
    assert settings("--image-cache-mib", "0").images.cache_bytes == 0
    assert settings().images == Settings().images


def test_connections_do_not_wait_for_acknowledgements() -> None:
    """asyncio turns Nagle's algorithm off only for sockets that say that they are TCP."""
    with listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_flags_go_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("port: 9000\nlog_level: error\npicture_size: {detail: low}\nmodels: [{name: a, engine: fake}]\n")
    made = settings(str(file))
    assert (made.port, made.log_level, made.picture_size.detail, made.models[0].name) == (9000, "error", "low", "a")
    made = settings("-c", str(file), "--port", "9001", "--log-level", "debug", "--image-max-pixels", "5000")
    assert (made.port, made.log_level) == (9001, "debug")
    assert made.picture_size == PictureSize(detail="low", max_pixels=5000)
    monkeypatch.setenv("SIGHTLINE_PORT", "9002")
    assert settings(str(file)).port == 9002
    with pytest.raises(InvalidRequest, match="--engine is about one model"):
        settings(str(file), "--engine", "fake")


def test_https_needs_both_of_its_files() -> None:
    tls = settings("--tls-certificate", "cert.pem", "--tls-key", "key.pem").tls
    assert tls is not None
    assert (tls.certificate, tls.key) == ("cert.pem", "key.pem")
    assert settings().tls is None
    for flag in ("--tls-certificate", "--tls-key"):
        with pytest.raises(InvalidRequest, match="needs both"):
            settings(flag, "file.pem")


def test_a_certificate_that_cannot_be_used_is_told_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", "--tls-certificate", "none.pem", "--tls-key", "none.pem"]) != 0
    assert "The certificate none.pem and the key none.pem cannot be used" in capsys.readouterr().err


def test_workers_are_a_number_of_processes(tmp_path: Path) -> None:
    assert settings().workers == 1
    assert settings("--workers", "3").workers == 3
    file = tmp_path / "sightline.yaml"
    file.write_text("workers: 4\n")
    assert settings(str(file)).workers == 4
    assert settings(str(file), "--workers", "2").workers == 2
    for count in ("0", "65"):
        with pytest.raises(InvalidRequest, match="--workers"):
            settings("--workers", count)
