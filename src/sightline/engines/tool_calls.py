"""An answer's text, as it grows, to words and calls of tools.

What could still become a call is held back until it is one or is not. A call's name and, as they come, its arguments
are told; what turns out to be no call (no JSON, a tool that is not there) is words like the rest: nothing is lost.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from sightline.engines import tool_elements
from sightline.engines.tool_formats import ToolFormat
from sightline.types import EngineRequest, Tool

_NAME_FIRST: Final = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)', re.DOTALL
)
"""As models write it, so that arguments can be told while they come."""
_NAMED: Final = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\][^\[]*)?\[ARGS\]\s*(?=\{)")
_FUNCTION: Final = re.compile(r"\s*<function=([^>\n]+)>")
_LONGEST_HEAD: Final = 400
"""Characters before which a call in words (`name[ARGS]`) must have shown itself."""

Kind = Literal["words", "call", "arguments", "nothing"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some characters of the answer, in order, and what they are."""

    kind: Kind
    text: str = ""
    """Words; a call's name; some of its arguments."""
    num_characters: int = 0
    """Of the answer."""
    call: int = 0
    """Which call of the answer it belongs to."""


def new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def calls_of(request: EngineRequest, form: ToolFormat) -> ToolCalls | None:
    """None, if the model may call nothing."""
    choice = request.tool_choice
    if not request.tools or choice.mode == "none":
        return None
    tools = (tool for tool in request.tools if not choice.names or tool.name in choice.names)
    return ToolCalls(form, tools, parallel=choice.parallel, enforced=choice.mode == "required")


class ToolCalls:
    """One answer's text in one format."""

    def __init__(
        self, form: ToolFormat, tools: Iterable[Tool], *, parallel: bool = True, enforced: bool = False
    ) -> None:
        """`enforced`: the model can write nothing but calls, so the beginning of one is never words."""
        self._form = form
        self._tools: Mapping[str, Tool] = {tool.name: tool for tool in tools}
        self._parallel = parallel
        self._enforced = enforced
        self.markers = form.markers
        self._state: Literal["words", "head", "arguments", "tail", "after"] = "words"
        self._held = ""
        self._head = ""
        """What a head began with: words, if it becomes none."""
        self._scanner = _Scanner()
        self._at_start = form.bare
        self.num_calls = 0
        self.is_done = False
        """The one call that was allowed is complete."""

    def push(self, text: str) -> list[Piece]:
        """What is certain now."""
        self._held += text
        pieces: list[Piece] = []
        while not self.is_done:
            before = self._state, len(self._held)
            pieces += getattr(self, f"_in_{self._state}")()
            if (self._state, len(self._held)) == before:
                break
        return pieces

    def flush(self) -> list[Piece]:
        """What was held back, when nothing follows."""
        held, self._held = self._held, ""
        if self.is_done:
            return []
        head = self._head if self._state == "head" else ""
        # Cut off in a call's closing text, or, where nothing but a call can be, before it had a name.
        if self._state == "after" or (self._enforced and self._state in ("words", "head")):
            return [Piece("nothing", "", len(head + held))] if head + held else []
        if head or held.strip() or (self._state == "words" and not self.num_calls):
            return [_words(head + held)] if head + held else []
        return [Piece("nothing", "", len(held))] if held else []

    # --- states: each takes from what is held and gives pieces ---------------------------------------------------

    def _in_words(self) -> list[Piece]:
        if self._at_start and self._held.strip():
            self._at_start = False
            if self._held.lstrip().startswith("{"):
                return self._begin_head("", 0)
        begin = self._held.find(self._form.begin)
        if begin >= 0:
            said = self._held[:begin]
            shown = said.rstrip()  # what parts words from a call belongs to neither
            pieces = [_words(shown)] if shown else []
            return pieces + self._begin_head(said[len(shown) :] + self._form.begin, len(said) + len(self._form.begin))
        safe = len(self._held) - _overlap(self._held, self._form.begin)
        shown = self._held[:safe].rstrip()
        self._held = self._held[len(shown) :]
        return [_words(shown)] if shown else []

    def _begin_head(self, head: str, num_characters: int) -> list[Piece]:
        self._state, self._head, self._scanner = "head", head, _Scanner()
        self._held = self._held[num_characters:]
        return []

    def _in_head(self) -> list[Piece]:
        match self._form.name:
            case "qwen3-coder":
                return self._function()
            case "mistral-args":
                return self._named()
            case _:
                return self._object()

    def _object(self) -> list[Piece]:
        """A JSON object with a name and arguments; in a list of them, what stands before the first."""
        if self._form.name == "mistral" and "[" not in self._head[len(self._form.begin) :]:
            stripped = self._held.lstrip()
            if stripped.startswith("["):
                taken = len(self._held) - len(stripped) + 1
                self._head += self._held[:taken]
                self._held = self._held[taken:]
        if stripped := self._held.lstrip():
            if not stripped.startswith("{"):
                return self._no_call()
            if (found := _NAME_FIRST.match(self._held)) is not None:
                name = _loaded(found[1])
                return [self._call(name, found.end())] if name in self._tools else self._no_call()
            if (end := self._scanner.end(self._held)) is not None:
                return self._no_call() if self._scanner.is_broken else self._whole_object(end)
        return []

    def _whole_object(self, end: int) -> list[Piece]:
        """Keys in another order, or arguments that are no object."""
        value = _loaded(self._held[:end])
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(name, str) or name not in self._tools:
            return self._no_call()
        arguments = value.get("arguments", value.get("parameters", {}))
        if isinstance(arguments, str) and isinstance(_loaded(arguments), dict):
            text = arguments
        elif isinstance(arguments, dict):
            text = json.dumps(arguments, ensure_ascii=False)
        else:
            return self._no_call()
        return [self._call(name, end), self._arguments(text), *self._complete()]

    def _in_arguments(self) -> list[Piece]:
        """As they come: to the end of their object, or to the first character that no JSON has there."""
        end = self._scanner.end(self._held)
        pieces = self._take("arguments", end)
        if end is not None:
            if self._scanner.is_broken or self._form.name == "mistral-args":
                return pieces + self._complete()
            self._state, self._scanner = "tail", _Scanner(depth=1)
        return pieces

    def _in_tail(self) -> list[Piece]:
        """From the end of the arguments to the end of the object that they are in."""
        end = self._scanner.end(self._held)
        return self._take("nothing", end) + ([] if end is None else self._complete())

    def _take(self, kind: Kind, end: int | None) -> list[Piece]:
        """What is held, up to `end` if there is one."""
        taken, self._held = self._held[:end], "" if end is None else self._held[end:]
        self._scanner.read = 0
        if not taken:
            return []
        return [self._arguments(taken, len(taken)) if kind == "arguments" else Piece(kind, "", len(taken))]

    def _arguments(self, text: str, num_characters: int = 0) -> Piece:
        return Piece("arguments", text, num_characters, self.num_calls - 1)

    def _in_after(self) -> list[Piece]:
        """Behind a call: its closing text, or what parts it from the next."""
        closing = {"mistral": (",", "]"), "llama3": (";",)}.get(self._form.name, (self._form.end,))
        stripped = self._held.lstrip()
        taken = len(self._held) - len(stripped)
        for text in filter(None, closing):
            if stripped.startswith(text):
                taken += len(text)
                if text in (",", ";"):
                    return self._begin_head(self._held[:taken], taken)
                self._state = "words"
                return self._take("nothing", taken)
            if text.startswith(stripped):
                return []
        self._state = "words"
        return []

    def _named(self) -> list[Piece]:
        """A name, then `[ARGS]`, then arguments."""
        if (found := _NAMED.match(self._held)) is not None and found[1] in self._tools:
            return [self._call(found[1], found.end())]
        if found is not None or len(self._held) > _LONGEST_HEAD:
            return self._no_call()
        return []

    def _function(self) -> list[Piece]:
        """Elements: their texts are made JSON by the tool's schema, once the call is whole."""
        if (found := _FUNCTION.match(self._held)) is None:
            opening = "<function="
            stripped = self._held.lstrip()
            could = opening.startswith(stripped) or (stripped.startswith(opening) and len(stripped) < _LONGEST_HEAD)
            return [] if could else self._no_call()
        name = found[1].strip()
        if name not in self._tools:
            return self._no_call()
        end = self._held.find("</function>")
        if end < 0:
            return []
        end += len("</function>")
        text = tool_elements.to_json(self._held[found.end() : end], self._tools[name])
        return [self._call(name, end), self._arguments(text), *self._complete()]

    # --- from one to another -------------------------------------------------------------------------------------

    def _call(self, name: str, taken: int) -> Piece:
        self.num_calls += 1
        self._held = self._held[taken:]
        self._state, self._scanner = "arguments", _Scanner()
        return Piece("call", name, len(self._head) + taken, self.num_calls - 1)

    def _no_call(self) -> list[Piece]:
        """What looked like one is words. What is held may begin a real one, so it is looked at anew."""
        self._state = "words"
        if self._head:
            return [_words(self._head)]
        taken = len(self._held) - len(self._held.lstrip("{ \n\t")) or 1
        shown, self._held = self._held[:taken], self._held[taken:]
        return [_words(shown)]

    def _complete(self) -> list[Piece]:
        self._state, self.is_done = "after", not self._parallel
        return []


def _words(text: str) -> Piece:
    return Piece("words", text, len(text))


class _Scanner:
    """Goes through JSON as it grows, to where its outermost bracket closes."""

    def __init__(self, depth: int = 0) -> None:
        """`depth`: brackets that are open already."""
        self.read = 0
        """Characters that it has been through, of the text as it is given."""
        self.is_broken = False
        """It met a `<` outside strings: no JSON has one, and a closing tag begins with it."""
        self._depth = depth
        self._in_string = False
        self._escaped = False

    def end(self, text: str) -> int | None:
        """Behind the bracket, or where it broke."""
        while self.read < len(text):
            character = text[self.read]
            if character == "<" and not self._in_string:
                self.is_broken = True
                return self.read
            self.read += 1
            if self._closes(character) and self._depth <= 0:
                return self.read
        return None

    def _closes(self, character: str) -> bool:
        if self._escaped:
            self._escaped = False
        elif self._in_string:
            self._escaped = character == "\\"
            self._in_string = character != '"'
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            return True
        return False


def _overlap(text: str, marker: str) -> int:
    """Characters at the end of `text` that `marker` may begin with."""
    return next((n for n in range(min(len(text), len(marker) - 1), 0, -1) if text.endswith(marker[:n])), 0)


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
