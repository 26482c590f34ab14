"""Server-sent events from bytes, however they are cut. Pure.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html, section 9.2.6. `id` and `retry`, which are for
clients that connect again, are ignored: a broken answer is never continued here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

MAX_EVENT_BYTES = 4 * 1024 * 1024
"""Of one event's lines together: a server that goes on without an end must not fill our memory."""

_BOM = b"\xef\xbb\xbf"
_LF = 0x0A


class MalformedStream(Exception):
    """What came is no event stream. The message is for the log."""


class ServerEvent(NamedTuple):
    data: str
    event: str = "message"


class ServerEvents:
    """The events of one stream, given its bytes in pieces of any size.

    Lines end in CRLF, LF or CR, an event in an empty line; what follows the last empty line is no event. The bytes of a
    line are decoded when it is whole, so that no cut is inside a character.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._rest = b""
        """Of a line that is not whole yet."""
        self._begun = False
        self._skip_newline = False
        """The last line ended in a CR at the very end of what had come: an LF that follows belongs to it."""
        self._data: list[str] = []
        self._event = ""
        self._size = 0

    def feed(self, piece: bytes) -> Iterable[ServerEvent]:
        """The events that are whole with this piece. Raises `MalformedStream`, then or when they are gone through."""
        event = self._alone(piece)
        return self._feed(piece) if event is None else (event,)

    def _alone(self, piece: bytes) -> ServerEvent | None:
        """What nearly every piece of a stream in real time is: one event of one line, from its beginning to its end.
        Seen as such it costs a third of what it costs line by line."""
        if (
            not self._begun
            or self._size
            or self._rest
            or self._skip_newline
            or not piece.startswith(b"data: ")
            or piece.find(b"\n") != len(piece) - 2
            or piece[-1] != _LF
            or b"\r" in piece
            or len(piece) > self._max_event_bytes
        ):
            return None
        try:
            return ServerEvent(piece[6:-2].decode())
        except UnicodeDecodeError:
            raise _not_utf8() from None

    def _feed(self, piece: bytes) -> Iterator[ServerEvent]:
        for line in self._lines(piece):
            self._size += len(line) + 1
            if self._size > self._max_event_bytes:
                raise self._too_large()
            if line:
                self._take(line)
            elif (event := self._dispatch()) is not None:
                yield event
        if self._size + len(self._rest) > self._max_event_bytes:
            raise self._too_large()

    def _too_large(self) -> MalformedStream:
        return MalformedStream(f"an event of more than {self._max_event_bytes} bytes")

    def _lines(self, piece: bytes) -> list[bytes]:
        if self._skip_newline and piece:
            self._skip_newline = False
            piece = piece.removeprefix(b"\n")
        if not self._begun:  # a byte order mark, which may come in pieces too
            self._rest += piece
            if len(self._rest) < len(_BOM) and _BOM.startswith(self._rest):
                return []
            self._begun, piece, self._rest = True, self._rest.removeprefix(_BOM), b""
        if b"\r" in piece:
            self._skip_newline = piece.endswith(b"\r")
            # A CR ends a line like LF does; those of CRLF would end one more, which is empty and would end the event.
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = piece.split(b"\n")
        if lines:
            lines[0], self._rest = self._rest + lines[0], rest
        else:
            self._rest += rest
        return lines

    def _take(self, line: bytes) -> None:
        """A line `field: value`; one that begins with a colon is a comment."""
        field, _, value = line.partition(b":")
        if field != b"data" and field != b"event":
            return
        try:
            text = value.removeprefix(b" ").decode()
        except UnicodeDecodeError:
            raise _not_utf8() from None
        if field == b"data":
            self._data.append(text)
        else:
            self._event = text

    def _dispatch(self) -> ServerEvent | None:
        data, event, self._data, self._event, self._size = self._data, self._event, [], "", 0
        return ServerEvent("\n".join(data), event or "message") if data else None


def _not_utf8() -> MalformedStream:
    return MalformedStream("an event is not UTF-8")
