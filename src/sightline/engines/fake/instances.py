"""What the engine without a model says where a JSON schema is to be kept: a valid value, the same for the same request.

The grammar that bounds real engines leads: of the bytes that may come, the one that brings the value to its end soonest
is taken, but where a text may stand, what was seen or said goes first. A schema that no engine could keep is refused
here as well.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from sightline.engines.constraint import Constraint, Constraints
from sightline.engines.tool_formats import GENERIC
from sightline.errors import SchemaInvalid
from sightline.types import EngineRequest, ResponseFormat, Tool, ToolChoice

_END: Final = 256
_MOST: Final = 4000
"""Bytes; a value that needs more than that is none that a test asks for."""
_SOONEST: Final = [*b'}]"0123456789abcdefghijklmnopqrstuvwxyz']
"""Bytes in the order in which they are taken; others follow."""


class _Bytes:
    """A vocabulary of bytes and an end."""

    size = 257
    eos_tokens = frozenset({_END})
    added: dict[int, bytes] = {_END: b"<|end|>"}  # noqa: RUF012

    def spelling(self, token: int) -> bytes:
        return b"" if token == _END else bytes([token])

    def tokens_of(self, texts: Iterable[str]) -> frozenset[int]:
        return frozenset()


@dataclass(frozen=True, slots=True)
class Shaped:
    """Values that a request's schemas ask for, as JSON texts."""

    answer: str | None = None
    arguments: dict[str, str] = field(default_factory=dict)
    """By tool; of those that may be called."""


class Instances:
    """Made at once; its threads and its process are there from the first schema to `close`."""

    def __init__(self) -> None:
        self._constraints: Constraints | None = None

    async def of(self, request: EngineRequest, words: Sequence[str]) -> Shaped:
        """`words`: go first where a text may stand. Raises `SchemaInvalid`."""
        answer = None
        if request.response_format.kind == "json_schema":
            answer = await self._value(request, request.response_format, words)
        choice, arguments = request.tool_choice, {}
        if choice.mode == "required":
            for tool in request.tools:
                if tool.name in (choice.names or (request.tools[0].name,)):
                    arguments[tool.name] = await self._arguments(request, tool, words)
        return Shaped(answer, arguments)

    def close(self) -> None:
        if self._constraints is not None:
            self._constraints.close()

    async def _arguments(self, request: EngineRequest, tool: Tool, words: Sequence[str]) -> str:
        param = tool.param or f"tools[{request.tools.index(tool)}].function.parameters"
        schema = {"type": "object", **tool.parameters}
        try:
            return await self._value(request, ResponseFormat("json_schema", schema, tool.strict, param), words)
        except SchemaInvalid:
            if tool.strict:
                raise
            return "{}"

    async def _value(self, request: EngineRequest, wanted: ResponseFormat, words: Sequence[str]) -> str:
        if self._constraints is None:
            self._constraints = Constraints(_Bytes(), lambda text: list(text.encode()), GENERIC)
        bare = replace(request, response_format=wanted, tools=(), tool_choice=ToolChoice("none"))
        constraint = await self._constraints.of(bare)
        assert constraint is not None, "a schema makes a grammar"
        return await asyncio.to_thread(_written, constraint, words)


def _written(constraint: Constraint, words: Sequence[str]) -> str:
    spoken = [list(json.dumps(word, ensure_ascii=False).encode()) for word in words]
    text: list[int] = []
    while len(text) < _MOST:
        allowed = set(np.flatnonzero(constraint.mask()).tolist())
        if _END in allowed:
            break
        closing = allowed & set(b"}]")
        taken = next((word for word in spoken if not closing and constraint.takes(word)), None)
        for token in taken or [next((b for b in _SOONEST if b in allowed), min(allowed))]:
            text.append(token)
            if constraint.accept(token):
                return bytes(text).decode()
    return bytes(text).decode(errors="replace")
