"""`sightline serve`: where it listens, and what it refuses to do unasked."""

from __future__ import annotations

import argparse
import socket

import pytest

from sightline.cli import main
from sightline.cli.serve import add_arguments, to_settings
from sightline.config import Settings
from sightline.errors import InvalidRequest


def settings(*argv: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return to_settings(parser.parse_args(argv))


def test_without_arguments_it_is_the_embedded_model_on_loopback() -> None:
    made = settings()
    assert (made.host, made.port, [m.name for m in made.models]) == ("127.0.0.1", 8000, ["peek"])
    assert "localhost" in made.allowed_hosts


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_an_open_address_needs_insistence(host: str) -> None:
    with pytest.raises(InvalidRequest, match="--open-to-anyone"):
        settings("--host", host)
    assert settings("--host", host, "--open-to-anyone").host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"])
def test_loopback_does_not(host: str) -> None:
    assert settings("--host", host).host == host


def test_a_taken_port_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--engine", "fake", "--port", port]) == 1
    assert f"Cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
