"""`sightline keys`: made, shown once, listed, revoked; and what a server makes of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sightline.access.keyfile import KeyFile, today
from sightline.access.keys import Keyring
from sightline.access.limits import Used
from sightline.cli import main
from sightline.cli.keys import to_moment
from sightline.config import KeyLimits
from sightline.errors import InvalidRequest
from tests.cli.test_serve import settings


def keys(*argv: str | Path) -> int:
    return main(["keys", *map(str, argv)])


def test_a_key_is_shown_once_and_kept_as_a_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--data-dir", tmp_path)
    limits = ("--requests-per-minute", "60", "--tokens-per-minute", "5000", "--concurrent", "4")
    budgets = ("--tokens-per-day", "100000", "--pictures-per-day", "300")
    made = keys("create", "shop", "--model", "a", "--model", "b", *limits, *budgets, "--tenant", "t", "--admin", *where)
    told = capsys.readouterr()
    secret = told.out.strip()
    assert made == 0
    assert re.fullmatch(r"sl-[A-Za-z0-9_-]{43}", secret), "alone on stdout, for KEY=$(sightline keys create ...)"
    assert secret not in told.err
    [kept] = KeyFile(tmp_path / "keys.db").load()
    assert Keyring([kept]).identify(secret.encode()).name == "shop"
    assert kept.limits == KeyLimits(
        requests_per_minute=60, tokens_per_minute=5000, concurrent=4, tokens_per_day=100_000, pictures_per_day=300
    )
    assert (kept.models, kept.tenant, kept.admin, kept.expires_at) == (("a", "b"), "t", True, None)

    KeyFile(tmp_path / "keys.db").add({(kept.id, today()): Used(3, 41, 2)})
    assert keys("list", *where) == 0
    listed = capsys.readouterr().out
    assert secret[3:12] not in listed
    shown = (kept.id, "shop (admin)", "valid", "a, b", "60 requests/min", "3 requests, 41 tokens, 2 pictures", "never")
    for part in shown:
        assert part in listed

    assert keys("revoke", "shop", *where) == 0
    assert keys("list", *where) == 0
    assert "revoked" in capsys.readouterr().out
    assert keys("revoke", "shop", *where) == 1, "no valid key is named so"
    assert keys("revoke", kept.id, *where) == 0, "by its id, any number of times"


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (("create", "a b"), "no name of a key"),
        (("create", "a", "--concurrent", "0"), "--concurrent is a number from 1 on"),
        (("create", "a", "--expires", "soon"), "--expires takes"),
        (("create", "a", "--expires", "2001-01-01"), "is over already"),
        (("create", "a", "--port", "0"), "--keys FILE"),
        (("revoke", "a"), "There is no key 'a'"),
        (("list", "--keys", "/proc/nothing/keys.db"), ""),
    ],
)
def test_what_cannot_be_meant(
    argv: tuple[str, ...],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert keys(*argv) == (1 if problem else 0)
    assert problem in capsys.readouterr().err
    assert not list(tmp_path.rglob("keys.db"))


def test_two_keys_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys("create", "a", "--keys", tmp_path / "k.db") == 0
    assert keys("create", "a", "--keys", tmp_path / "k.db") == 1
    assert "a key named a already" in capsys.readouterr().err


def test_what_was_kept_before_there_were_keys_has_a_tenant_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys("create", "heir", "--tenant", "", "--keys", tmp_path / "k.db") == 0
    assert KeyFile(tmp_path / "k.db").load()[0].tenant == ""
    assert keys("list", "--keys", tmp_path / "k.db") == 0
    assert ' ""  ' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "moment"),
    [("90d", 1000 + 90 * 86_400), ("12h", 1000 + 12 * 3600), ("2w", 1000 + 14 * 86_400), ("1970-01-02", 86_400)],
)
def test_when_a_key_expires(text: str, moment: int) -> None:
    assert to_moment(text, 1000.9) == moment


@pytest.mark.parametrize("text", ["0d", "1.5d", "d", "-1d", "1y", "", "tomorrow", "2027-13-01"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(InvalidRequest):
        to_moment(text, 0.0)


def test_they_are_kept_where_the_server_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert keys("create", "a") == 0
    assert keys("create", "b", "--port", "9000") == 0
    assert keys("create", "c", "--data-dir", tmp_path / "own") == 0
    (tmp_path / "s.yaml").write_text(f"models: [{{name: m, engine: fake}}]\naccess: {{file: {tmp_path}/file.db}}\n")
    assert keys("create", "d", "-c", tmp_path / "s.yaml") == 0
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.db")}
    assert found == {"sightline/port-8000/keys.db", "sightline/port-9000/keys.db", "own/keys.db", "file.db"}


def test_an_open_address_needs_a_key_that_counts(tmp_path: Path) -> None:
    argv = ("--host", "0.0.0.0", "--data-dir", str(tmp_path))
    with pytest.raises(InvalidRequest, match="sightline keys create"):
        settings(*argv)
    assert keys("create", "a", "--data-dir", tmp_path) == 0
    assert settings(*argv).host == "0.0.0.0"
    assert keys("create", "a", "--keys", tmp_path / "other.db") == 0
    assert settings("--host", "0.0.0.0", "--keys", str(tmp_path / "other.db")).access.file == str(tmp_path / "other.db")


def test_a_file_of_keys_that_is_not_there_opens_no_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody names a file of keys for a server that is to be open: its name is wrong, or its disk is not there."""
    (tmp_path / "s.yaml").write_text(f"models: [{{name: m, engine: fake}}]\naccess: {{file: {tmp_path}/nought.db}}\n")
    assert main(["check", str(tmp_path / "s.yaml")]) == 1
    assert f"There is no API key in {tmp_path}/nought.db" in capsys.readouterr().err


def test_a_listener_for_admins_is_no_way_round(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(
        f"models: [{{name: m, engine: fake}}]\ndata_dir: {tmp_path}\nadmin: {{host: 0.0.0.0, port: 9090}}\n"
    )
    with pytest.raises(InvalidRequest, match="sightline keys create"):
        settings(str(file))


def test_check_tells_what_is_wrong_with_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "s.yaml"
    start = "models:\n- {name: m, engine: fake}\naccess:\n  keys:\n"
    file.write_text(f"{start}  - {{name: a, env: NO_SUCH_VARIABLE}}\n")
    assert main(["check", str(file)]) == 1
    assert "NO_SUCH_VARIABLE, which must hold" in capsys.readouterr().err
    file.write_text(f"{start}  - {{name: a, sha256: sl-written-out-by-mistake}}\n")
    assert main(["check", str(file)]) == 1
    told = capsys.readouterr().err
    assert f"{file}:4: access.keys: The sha256 of the key a" in told
    assert "sl-written" not in told
    file.write_text(f"{start}  - {{name: a, sha256: '{'0' * 64}', expires: 2027-01-01, requests_per_minute: 5}}\n")
    assert main(["check", str(file)]) == 0
