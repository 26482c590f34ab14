"""`sightline keys create | list | revoke`: who may use a server. A running one knows of it within two seconds."""

from __future__ import annotations

import argparse
import datetime
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from sightline.access.gate import keys_path
from sightline.access.keyfile import KeyFile, today
from sightline.access.keys import Key, new_id, new_secret, to_digest, to_key
from sightline.access.limits import Used
from sightline.cli.check import to_table
from sightline.cli.models import PORT
from sightline.cli.serve import with_data_dir
from sightline.config import AccessPolicy, KeyConfig, KeyLimits, Settings, environment
from sightline.configfile import load
from sightline.errors import InvalidRequest

_UNITS_S: Final = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
_DURATION: Final = re.compile(r"([1-9][0-9]{0,4})([hdw])")
_LIMITS: Final = {
    "requests_per_minute": ("requests/min", "POSTs in a minute"),
    "tokens_per_minute": ("tokens/min", "tokens of prompts, pictures and answers in a minute"),
    "concurrent": ("at once", "requests at once"),
    "tokens_per_day": ("tokens/day", "tokens from midnight to midnight, UTC"),
    "pictures_per_day": ("pictures/day", "pictures from midnight to midnight, UTC"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    made = actions.add_parser("create", help="make a key and show it, this once")
    made.add_argument("name", metavar="NAME", help="for whom or what it is")
    made.add_argument("--model", action="append", default=[], metavar="M", help="it may be used for (default: any)")
    for name, (_, meaning) in _LIMITS.items():
        made.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=f"at most N {meaning}")
    made.add_argument(
        "--tenant",
        metavar="T",
        help='share files, batches and responses with its other keys; "": those of before there were keys',
    )
    made.add_argument("--admin", action="store_true", help="it may also control the server")
    made.add_argument("--expires", metavar="WHEN", help="90d, 12h, or the day 2027-01-01 (default: never)")
    listed = actions.add_parser("list", help="the keys, and what they have used today")
    revoked = actions.add_parser("revoke", help="take a key back, for good")
    revoked.add_argument("key", metavar="KEY", help="its id, key-..., or its name")
    for action in (made, listed, revoked):
        _add_place(action)


def _add_place(action: argparse.ArgumentParser) -> None:
    place = action.add_mutually_exclusive_group()
    place.add_argument("-c", "--config", type=Path, metavar="FILE", help="the server's configuration file")
    place.add_argument("--keys", metavar="FILE", help="where the keys are kept, as `serve --keys` has it")
    place.add_argument(
        "--data-dir", default=environment("DATA_DIR"), metavar="DIR", help="as `serve --data-dir` has it"
    )
    place.add_argument("--port", type=PORT, metavar="N", help="of a server without any of these (default: 8000)")


def run(args: argparse.Namespace) -> int:
    settings = _settings(args)
    path = keys_path(settings)
    if path is None:
        raise InvalidRequest("A server on any free port keeps no keys. Say where: --keys FILE.", param="port")
    file = KeyFile(path)
    if args.action == "create":
        return _create(args, file)
    if args.action == "revoke":
        key = file.revoke(args.key, time.time())
        print(f"{key.id} ({key.name}) is revoked.")
        return 0
    print(to_table([_HEADER, *_rows(file, settings)]))
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    if args.config is not None:
        return with_data_dir(load(args.config))
    if args.keys is not None:
        return Settings(access=AccessPolicy(file=args.keys))
    return with_data_dir(Settings(data_dir=args.data_dir, port=Settings().port if args.port is None else args.port))


def _create(args: argparse.Namespace, file: KeyFile) -> int:
    secret, key_id, now = new_secret(), new_id(), time.time()
    limits = {name: value for name in _LIMITS if (value := getattr(args, name)) is not None}
    key = Key(
        id=key_id,
        name=_to_name(args.name),
        digest=to_digest(secret.encode()),
        tenant=key_id if args.tenant is None else args.tenant,
        models=tuple(args.model),
        admin=args.admin,
        limits=_to_limits(limits),
        created_at=int(now),
        expires_at=None if args.expires is None else to_moment(args.expires, now),
    )
    file.create(key)
    print(f"{key.id} ({key.name}), kept as a hash in {file.path}. The key itself is shown this once:", file=sys.stderr)
    print(secret)
    return 0


def _to_name(name: str) -> str:
    """By the rule for keys of the configuration file. Raises `InvalidRequest`."""
    return KeyConfig(name=name, sha256="0" * 64).name


def _to_limits(given: dict[str, int]) -> KeyLimits:
    """Raises `InvalidRequest`."""
    try:
        return msgspec.convert(given, KeyLimits)
    except msgspec.ValidationError:
        name = next(name for name, value in given.items() if value < 1)
        raise InvalidRequest(f"--{name.replace('_', '-')} is a number from 1 on; leave it out for no limit.") from None


def to_moment(text: str, now: float) -> int:
    """When a key that `expires` so is taken no more, in seconds since 1970. Raises `InvalidRequest`."""
    if match := _DURATION.fullmatch(text):
        return int(now) + int(match[1]) * _UNITS_S[match[2]]
    try:
        moment = int(datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC).timestamp())
    except ValueError:
        raise InvalidRequest(
            "--expires takes a time from now, such as 90d, 12h or 4w, or a day, such as 2027-01-01.", param="expires"
        ) from None
    if moment <= now:
        raise InvalidRequest(f"--expires {text} is over already.", param="expires")
    return moment


# --- listing ---------------------------------------------------------------------------------------------------------

_HEADER: Final = ("ID", "NAME", "STATE", "TENANT", "MODELS", "LIMITS", "TODAY", "EXPIRES")


def _rows(file: KeyFile, settings: Settings) -> Iterator[tuple[str, ...]]:
    used = file.used(today())
    for key in (*file.load(), *map(to_key, settings.access.keys)):
        yield (
            key.id,
            key.name + (" (admin)" if key.admin else ""),
            key.state(time.time()),
            "its own" if key.tenant == key.id else key.tenant or '""',
            ", ".join(key.models) or "any",
            _to_text(key.limits),
            _to_usage(used.get(key.id, Used())),
            _to_day(key.expires_at),
        )


def _to_day(moment: int | None) -> str:
    return "never" if moment is None else f"{datetime.datetime.fromtimestamp(moment, datetime.UTC):%Y-%m-%d}"


def _to_text(limits: KeyLimits) -> str:
    given = ((short, getattr(limits, name)) for name, (short, _) in _LIMITS.items())
    return ", ".join(f"{value} {short}" for short, value in given if value is not None) or "none"


def _to_usage(used: Used) -> str:
    return f"{used.requests} requests, {used.tokens} tokens, {used.pictures} pictures"
