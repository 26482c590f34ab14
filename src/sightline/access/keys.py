"""API keys: what one is, and how it is found by what a client sends.

A key is 256 random bits behind `sl-`, shown once. What is kept is its SHA-256: of that much entropy there is nothing
to guess, so a slow hash with a salt, as for passwords, would protect nothing and cost every request its time.
"""

from __future__ import annotations

import calendar
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterable
from hmac import compare_digest
from typing import Final, Literal

import msgspec

from sightline.config import KeyConfig, KeyLimits, variable
from sightline.errors import InvalidRequest, Unauthenticated

PREFIX: Final = "sl-"
State = Literal["valid", "expired", "revoked"]
_SHORTEST: Final = 16
"""Characters of a key that comes from the environment: shorter ones can be guessed."""


class Key(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    """`key-...`: in logs and listings, and no secret."""
    name: str
    digest: bytes
    """SHA-256 of what clients send."""
    tenant: str
    """Whose files, batches and responses it sees."""
    models: tuple[str, ...] = ()
    """Those it may be used for, by any of their names; none: all."""
    admin: bool = False
    limits: KeyLimits = KeyLimits()
    created_at: int = 0
    """Seconds since 1970, as all times here."""
    expires_at: int | None = None
    revoked_at: int | None = None

    def state(self, now: float) -> State:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and now >= self.expires_at else "valid"


def new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def new_id() -> str:
    return f"key-{os.urandom(6).hex()}"


def to_digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def to_key(config: KeyConfig) -> Key:
    """A key of the configuration. Raises `InvalidRequest` where the variable that holds it is missing or too short."""
    if config.env is not None:
        secret = variable(config.env) or ""
        if len(secret) < _SHORTEST:
            raise InvalidRequest(
                f"The key {config.name} is read from the variable {config.env}, which must hold at least {_SHORTEST} "
                "characters, and should be random: openssl rand -base64 32.",
                param="access",
            )
        digest = to_digest(secret.encode())
    else:
        digest = bytes.fromhex(config.sha256 or "")
    key_id = f"key-{config.name}"
    expires = None if config.expires is None else calendar.timegm(config.expires.timetuple())
    return Key(
        id=key_id,
        name=config.name,
        digest=digest,
        tenant=key_id if config.tenant is None else config.tenant,
        models=config.models,
        admin=config.admin,
        limits=config.limits,
        expires_at=expires,
    )


_NOBODY: Final = Key(id="", name="", digest=secrets.token_bytes(32), tenant="")


class Keyring:
    """The keys there are, those that no longer count among them. A value: another takes its place."""

    def __init__(self, keys: Iterable[Key] = (), *, clock: Callable[[], float] = time.time) -> None:
        self.keys = tuple(keys)
        self._clock = clock
        self._by_digest = {key.digest: key for key in self.keys}
        self._by_id = {key.id: key for key in self.keys}

    @property
    def is_empty(self) -> bool:
        """There never was a key. Revoking the last one does not open a server to everybody."""
        return not self.keys

    def identify(self, secret: bytes) -> Key:
        """The key that a client has sent. Raises `Unauthenticated`.

        It takes as long for a key that is unknown: what is looked up and compared is a digest, of which nobody can
        choose the first bytes.
        """
        digest = to_digest(secret)
        key = self._by_digest.get(digest, _NOBODY)
        if not compare_digest(key.digest, digest):
            raise Unauthenticated("The API key is not known here. Who runs this server gives out keys.")
        return self._verified(key)

    def get(self, key_id: str) -> Key:
        """The key of an id, for what was let in by it before. Raises `Unauthenticated`."""
        if (key := self._by_id.get(key_id)) is None:
            raise Unauthenticated("The API key that this was asked with is no longer known here.")
        return self._verified(key)

    def _verified(self, key: Key) -> Key:
        if (state := key.state(self._clock())) != "valid":
            has = "has expired" if state == "expired" else "was revoked"
            raise Unauthenticated(f"The API key {has}. Who runs this server gives out keys.")
        return key
