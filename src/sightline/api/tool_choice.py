"""`tools` and `tool_choice` together, as chat completions and responses have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sightline.api.fields import invalid
from sightline.types import Tool, ToolChoice


def choose(tools: Sequence[Tool], choice: ToolChoice, *, parallel: bool) -> tuple[tuple[Tool, ...], ToolChoice]:
    """The tools that the model is shown, and which of them it may or must call.

    `choice` with `auto` and names: only these are shown. Raises `InvalidRequest` for what the two contradict in.
    """
    names = {tool.name for tool in tools}
    if len(names) != len(tools):
        raise invalid("tools", "must not have two functions of the same name")
    if not tools:
        if choice.mode == "required":
            raise invalid("tool_choice", "needs 'tools'")
        return (), ToolChoice("none")
    if unknown := sorted(set(choice.names) - names):
        raise invalid("tool_choice", f"names a function that is not in 'tools': {unknown[0]!r}")
    choice = replace(choice, parallel=parallel)
    if choice.mode == "auto" and choice.names:
        return tuple(tool for tool in tools if tool.name in choice.names), replace(choice, names=())
    return tuple(tools), choice
