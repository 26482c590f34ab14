"""What a key is, where keys are kept, and how one is found."""

from __future__ import annotations

import datetime
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sightline.access.gate import Gate, keys_path
from sightline.access.keyfile import KeyFile, today
from sightline.access.keys import Key, Keyring, new_id, new_secret, to_digest, to_key
from sightline.access.limits import Used
from sightline.config import AccessPolicy, KeyConfig, KeyLimits, Settings
from sightline.errors import InvalidRequest, ObjectNotFound, StorageUnavailable, Unauthenticated
from sightline.frontends.supervisor import Supervisor
from tests.access.keyed import add_key


def key(name: str = "me", **values: object) -> Key:
    made = {"id": new_id(), "name": name, "digest": to_digest(new_secret().encode()), "tenant": "t", **values}
    return Key(**made)  # type: ignore[arg-type]


def test_a_secret_is_256_random_bits() -> None:
    secrets = {new_secret() for _ in range(1000)}
    assert len(secrets) == 1000
    assert all(secret.startswith("sl-") and len(secret) == 3 + 43 for secret in secrets)


def test_what_is_kept_is_read_again_and_holds_no_part_of_the_key(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "deep" / "keys.db")
    limits = KeyLimits(requests_per_minute=5, pictures_per_day=7)
    secret = add_key(
        file, "me", models=("a", "b"), admin=True, expires_at=2**40, requests_per_minute=5, pictures_per_day=7
    )
    [kept] = file.load()
    assert (kept.name, kept.models, kept.admin, kept.limits, kept.expires_at) == ("me", ("a", "b"), True, limits, 2**40)
    assert kept.tenant == kept.id
    assert Keyring([kept]).identify(secret.encode()) == kept
    written = b"".join(path.read_bytes() for path in file.path.parent.iterdir())
    assert not any(secret[start : start + 6].encode() in written for start in range(3, len(secret) - 6))


def test_only_its_owner_may_read_the_file(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.db")
    add_key(file)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_a_name_is_free_again_once_its_key_is_revoked(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.db")
    add_key(file, "me")
    with pytest.raises(InvalidRequest, match="a key named me already"):
        add_key(file, "me")
    assert file.revoke("me", 5.0).revoked_at == 5
    add_key(file, "me")
    first, second = file.load()
    assert file.revoke(first.id, 9.0).revoked_at == 5, "once is once"
    assert file.revoke("me", 9.0).id == second.id
    with pytest.raises(ObjectNotFound):
        file.revoke("nobody", 1.0)


def test_where_there_is_no_file_there_is_no_key(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.db")
    assert (file.load(), file.used(today()), file.stamp()) == ([], {}, ())
    assert not file.path.exists(), "and looking makes none"


@pytest.mark.parametrize("is_there", [True, False])
def test_a_file_that_is_named_and_holds_no_key_keeps_a_server_from_starting(tmp_path: Path, is_there: bool) -> None:
    file = tmp_path / "keys.db"
    if is_there:
        file.touch()
    with pytest.raises(InvalidRequest, match=r"no API key in .*sightline keys create"):
        Gate(AccessPolicy(file=str(file)), file)
    assert Gate(AccessPolicy(), file).is_open, "where a server keeps its own, there may be none yet"
    key = KeyConfig(name="ops", sha256="0" * 64)
    assert not Gate(AccessPolicy(file=str(file), keys=(key,)), file).is_open
    add_key(KeyFile(file))
    assert not Gate(AccessPolicy(file=str(file)), file).is_open


def test_a_process_that_is_started_again_while_the_file_is_away_lets_nobody_in(tmp_path: Path) -> None:
    """What a restart reads must not be what an attacker, or a disk that is not mounted, has left."""
    file = KeyFile(tmp_path / "keys.db")
    settings = Settings(data_dir=str(tmp_path))
    supervisor = Supervisor(settings, [], lambda: settings)
    assert not supervisor.order().guarded
    secret = add_key(file)
    assert supervisor.order().guarded
    file.path.rename(tmp_path / "away")
    gate = Gate(settings.access, keys_path(settings), guarded=supervisor.order().guarded)
    assert not gate.is_open
    with pytest.raises(Unauthenticated):
        gate.identify(secret.encode())
    named = AccessPolicy(file=str(file.path))
    assert not Gate(named, file.path, guarded=True).is_open, "nor does it end for want of it"


def test_a_file_that_is_none_keeps_a_server_from_starting(tmp_path: Path) -> None:
    (tmp_path / "keys.db").write_bytes(b"no database at all, but something")
    with pytest.raises(StorageUnavailable, match=r"keys\.db"):
        Gate(AccessPolicy(), tmp_path / "keys.db")
    newer = KeyFile(tmp_path / "newer.db")
    add_key(newer)
    with sqlite3.connect(newer.path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageUnavailable, match="newer version"):
        Gate(AccessPolicy(), newer.path)


def test_what_was_used_adds_up_across_processes(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.db")
    add_key(file)
    assert file.add({("k", 5): Used(1, 10, 2)}) == {("k", 5): Used(1, 10, 2)}
    program = (
        "import sys; from pathlib import Path; from sightline.access.keyfile import KeyFile; "
        "from sightline.access.limits import Used; KeyFile(Path(sys.argv[1])).add({('k', 5): Used(1, 7, 0)})"
    )
    subprocess.run([sys.executable, "-c", program, str(file.path)], check=True)
    assert file.add({("k", 5): Used(0, 1, 0), ("k", 6): Used(1, 1, 0)})["k", 5] == Used(2, 18, 2)
    assert file.used(6) == {"k": Used(1, 1, 0)}
    file.add({("k", 500): Used(1, 1, 1)})
    assert file.used(5) == {}, "what nobody asks for any more is forgotten"


def test_who_is_let_in() -> None:
    secret = new_secret()
    clock = [100.0]
    for values, told in (
        ({}, ""),
        ({"expires_at": 101}, ""),
        ({"expires_at": 100}, "has expired"),
        ({"revoked_at": 1}, "was revoked"),
    ):
        ring = Keyring([key(digest=to_digest(secret.encode()), **values)], clock=lambda: clock[0])
        if not told:
            assert ring.identify(secret.encode()).name == "me"
            continue
        with pytest.raises(Unauthenticated, match=told) as caught:
            ring.identify(secret.encode())
        assert secret not in str(caught.value)
        with pytest.raises(Unauthenticated, match=told):
            ring.get(ring.keys[0].id)
    for wrong in (b"", secret[:-1].encode(), secret.encode() + b" ", secret.swapcase().encode(), b"\xff" * 100_000):
        with pytest.raises(Unauthenticated, match="not known") as caught:
            ring.identify(wrong)


def test_keys_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_KEY", "a-long-random-text-of-the-operator")
    secret = new_secret()
    by_env = KeyConfig(name="app", env="APP_KEY", models=("m",), tokens_per_day=5)
    by_hash = KeyConfig(name="ops", sha256=to_digest(secret.encode()).hex().upper(), admin=True, tenant="us")
    gate = Gate(AccessPolicy(keys=(by_env, by_hash)))
    assert not gate.is_open
    app = gate.identify(b"a-long-random-text-of-the-operator")
    assert (app.id, app.tenant, app.models, app.limits) == ("key-app", "key-app", ("m",), KeyLimits(tokens_per_day=5))
    ops = gate.identify(secret.encode())
    assert (ops.id, ops.tenant, ops.admin) == ("key-ops", "us", True)
    last = KeyConfig(name="old", env="APP_KEY", expires=datetime.date(1970, 1, 2))
    assert to_key(last).expires_at == 86_400


@pytest.mark.parametrize("value", [None, "", "short"])
def test_a_variable_that_holds_no_key_keeps_a_server_from_starting(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("APP_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("APP_KEY", value)
    with pytest.raises(InvalidRequest, match="APP_KEY") as caught:
        Gate(AccessPolicy(keys=(KeyConfig(name="app", env="APP_KEY"),)))
    assert "short" not in caught.value.message.replace("shorter", "")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"name": "a b", "env": "X"}, "no name of a key"),
        ({"name": "a"}, "sha256, or by env"),
        ({"name": "a", "env": "X", "sha256": "0" * 64}, "sha256, or by env"),
        ({"name": "a", "sha256": "sl-written-out"}, "64 hexadecimal digits"),
    ],
)
def test_a_configuration_that_cannot_be_meant(values: dict[str, str], problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem) as caught:
        KeyConfig(**values)  # type: ignore[arg-type]
    assert "sl-written-out" not in caught.value.message


def test_two_keys_of_one_name() -> None:
    with pytest.raises(InvalidRequest, match="Two keys are named a"):
        AccessPolicy(keys=(KeyConfig(name="a", env="X"), KeyConfig(name="a", env="Y")))
