"""What the parent says to its processes, and they to it."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from sightline import __version__
from sightline.config import Settings
from sightline.frontends.frames import Frame


class Start(Frame, frozen=True):
    """The first frame, once, to the core and to a front end alike."""

    settings: Settings
    processes: int
    """Front ends, of which each has its share of what the settings allow the server."""
    guarded: bool = False
    """There have been keys: one that is started while their file is away lets nobody in."""
    version: str = __version__
    """Of the program that the parent runs, and so the core."""


class Join(Frame, frozen=True):
    """To the core: a front end's end of the link comes beside it."""

    @property
    def has_descriptor(self) -> bool:
        return True


class Retire(Frame, frozen=True):
    """To a front end: another takes its place; no client is to notice."""


class Drain(Frame, frozen=True):
    """To a front end: the server ends."""


class Up(Frame, frozen=True):
    """From both: requests are answered from now on."""


FromParent: TypeAlias = Start | Join | Retire | Drain
ToParent: TypeAlias = Up

_from_parent: msgspec.msgpack.Decoder[FromParent] = msgspec.msgpack.Decoder(FromParent)
_to_parent: msgspec.msgpack.Decoder[ToParent] = msgspec.msgpack.Decoder(ToParent)
decode_from_parent = _from_parent.decode
decode_to_parent = _to_parent.decode
