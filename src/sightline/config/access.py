"""Who may ask for what, and for how much of it."""

from __future__ import annotations

import datetime
import re
from typing import Annotated

import msgspec

from sightline.errors import InvalidRequest


class KeyLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much whoever has an API key may ask for. None: as much as there is."""

    requests_per_minute: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """A POST is a request; what only reads or deletes is none."""
    tokens_per_minute: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Of prompts, pictures included, and answers."""
    concurrent: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Requests at once. Lines of batches do not count: `batches.max_concurrent` is for them."""
    tokens_per_day: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """From midnight to midnight, UTC; kept across restarts."""
    pictures_per_day: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Likewise."""


class KeyConfig(KeyLimits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An API key that is not made by `sightline keys create`. The key itself never stands in the file."""

    name: str
    """Its id is `key-` and this."""
    sha256: str | None = None
    """Of the key, in hexadecimal: `printf %s "$KEY" | sha256sum`. The key must be random, of 32 bytes or more."""
    env: str | None = None
    """Or the name of the variable of the environment that holds the key."""
    models: tuple[str, ...] = ()
    """The models it may be used for, by any of their names; none: all."""
    tenant: str | None = None
    """Whose files, batches and responses it sees; None: its own alone. Keys of one tenant share them; those of before
    there were keys are the tenant `""`'s."""
    admin: bool = False
    """Whether it may also control the server: metrics, `/admin`, what is loaded."""
    expires: datetime.date | None = None
    """The first day, UTC, on which it is no longer taken: `2027-01-01`."""

    def __post_init__(self) -> None:
        if not _KEY_NAME.fullmatch(self.name):
            raise InvalidRequest(
                f"{self.name[:64]!r} is no name of a key: letters, digits and . _ - at most 64 of them.", param="access"
            )
        if (self.sha256 is None) == (self.env is None):
            raise InvalidRequest(
                f"The key {self.name} is told by its sha256, or by env, the name of a variable that holds it.",
                param="access",
            )
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise InvalidRequest(
                f'The sha256 of the key {self.name} is 64 hexadecimal digits: printf %s "$KEY" | sha256sum.',
                param="access",
            )

    @property
    def limits(self) -> KeyLimits:
        return KeyLimits(**{name: getattr(self, name) for name in KeyLimits.__struct_fields__})


_KEY_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class AccessPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may use the server. As it stands: anyone who reaches it, until there is a first key."""

    file: str | None = None
    """Where `sightline keys` keeps its keys; None: `keys.db` in the data directory."""
    keys: tuple[KeyConfig, ...] = ()
    """More of them, for servers that are made anew each time, such as containers."""

    def __post_init__(self) -> None:
        names = [key.name for key in self.keys]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InvalidRequest(f"Two keys are named {twice}; each has a name of its own.", param="access")
