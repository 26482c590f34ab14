"""Stop strings over a stream of text: where to cut, and what must not be shown yet.

A stop string may lie across any number of deltas and the client must never see a part of one, so text is held back for
as long as it could still become a stop. Engines feed this text, not tokens: a stop is defined on what the client reads.
"""

from __future__ import annotations

from collections.abc import Iterable


class StopStrings:
    """Cuts one stream of text at the first stop string.

    The stop that is complete first wins; of those complete at the same character, the longest. That rule needs no
    look-ahead and does not depend on how the text is cut into deltas.

    Matching is Knuth, Morris and Pratt's (1977), a state for each stop: linear in the text whatever the stops are, and
    the state is at the same time how many characters that stop makes us hold back.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        """Empty strings are no stops."""
        # Longest first, so that of two stops complete at one character the longer is met first.
        self._stops = sorted({s for s in stops if s}, key=len, reverse=True)
        self._borders = [_borders(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self._held = ""
        self._hit: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that is now safe to show, and the stop string that ended the stream, if one did.

        Neither the stop string nor what follows it is ever returned. After a hit everything is swallowed.
        """
        if self._hit is not None:
            return "", self._hit
        if not self._stops:
            return text, None
        buffer = self._held + text
        for position in range(len(self._held), len(buffer)):
            if (hit := self._advance(buffer[position])) is not None:
                self._hit, self._held = hit, ""
                return buffer[: position + 1 - len(hit)], hit
        safe = len(buffer) - max(self._matched)
        self._held = buffer[safe:]
        return buffer[:safe], None

    def flush(self) -> str:
        """What was held back, when generation ends without a stop: it will never become one now."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held

    def _advance(self, character: str) -> str | None:
        for index, stop in enumerate(self._stops):
            borders, matched = self._borders[index], self._matched[index]
            while matched and stop[matched] != character:
                matched = borders[matched - 1]
            matched += stop[matched] == character
            if matched == len(stop):
                return stop
            self._matched[index] = matched
        return None


def _borders(stop: str) -> list[int]:
    """For each prefix of `stop`: the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(stop)
    matched = 0
    for position in range(1, len(stop)):
        while matched and stop[matched] != stop[position]:
            matched = borders[matched - 1]
        matched += stop[matched] == stop[position]
        borders[position] = matched
    return borders
