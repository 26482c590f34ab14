"""What it answers: the commands in a request, and the tokens and faults that they ask for. Pure but for `crash`."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from sightline.engines.fake.instances import Shaped
from sightline.engines.fake.sight import describe
from sightline.engines.fake.tokens import to_text, tokenise
from sightline.errors import EngineFailed, InvalidRequest
from sightline.types import (
    Delta,
    EngineRequest,
    FinishReason,
    ReasoningDelta,
    RefusalDelta,
    Text,
    TextDelta,
    ToolCallDelta,
)

REFUSAL = "I will not answer that."
FILLER = " and so on"
"""What it goes on with when it must not stop: `min_tokens`, `ignore_eos`, a `length` longer than the answer."""
CRASH_STATUS = 70
"""Exit status of the process after `crash`."""


@dataclass(frozen=True, slots=True)
class Plan:
    tokens: Iterator[Delta]
    """Each exactly one token."""
    reason: FinishReason = "stop"
    """When the tokens are spent."""
    reasoning_tokens: int = 0
    slow_s: float = 0.0
    error_at: int | None = None
    crash_at: int | None = None
    breaks: bool = False
    hangs: bool = False


@dataclass(slots=True)
class Script:
    say: str | None = None
    clock: int | None = None
    think: str = ""
    length: int | None = None
    tools: list[tuple[str, str]] = field(default_factory=list)
    refuse: bool = False
    slow_s: float = 0.0
    error_at: int | None = None
    crash_at: int | None = None
    breaks: bool = False
    hang: bool = False


def to_plan(request: EngineRequest, default_script: str, shaped: Shaped) -> Plan:
    """`shaped`: what the request's schemas ask for."""
    text = _last_user_text(request)
    script, said = read_script(text, "messages")
    if script == Script():
        script, _ = read_script(default_script, "options")
    calls = _calls(request, script, shaped)
    if not request.tool_choice.parallel:
        calls = calls[:1]
    is_free = request.response_format.kind == "text"
    answer: Iterator[Delta]
    reason: FinishReason = "stop"
    if script.refuse:
        answer = (RefusalDelta(token) for token in tokenise(REFUSAL))
    elif calls:
        answer, reason = _tool_tokens(calls), "tool_calls"
    elif script.clock is not None:
        answer = (TextDelta(f" {time.monotonic():.6f}@{os.getpid()}") for _ in range(script.clock))
    else:
        text = script.say if script.say is not None else shaped.answer or describe(request, said)
        answer = (TextDelta(token) for token in tokenise(text))
    thoughts = [ReasoningDelta(token) for token in tokenise(script.think)]
    tokens: Iterator[Delta] = itertools.chain(thoughts, answer)
    sampling = request.sampling
    if script.length is not None:
        tokens, reason = _exactly(script.length, tokens), "length"
    elif sampling.ignore_eos and reason == "stop" and is_free:
        tokens = itertools.chain(tokens, _filler())
    elif sampling.min_tokens and reason == "stop" and is_free:
        tokens = _at_least(sampling.min_tokens, tokens)
    faults = (script.slow_s, script.error_at, script.crash_at, script.breaks, script.hang)
    return Plan(tokens, reason, len(thoughts), *faults)


def _filler() -> Iterator[Delta]:
    return (TextDelta(token) for token in itertools.cycle(tokenise(FILLER)))


def _exactly(count: int, tokens: Iterator[Delta]) -> Iterator[Delta]:
    return itertools.islice(itertools.chain(tokens, _filler()), count)


def _at_least(count: int, tokens: Iterator[Delta]) -> Iterator[Delta]:
    made = 0
    for token in tokens:
        made += 1
        yield token
    yield from itertools.islice(_filler(), max(0, count - made))


def _calls(request: EngineRequest, script: Script, shaped: Shaped) -> list[tuple[str, str]]:
    choice, known = request.tool_choice, [tool.name for tool in request.tools]
    if choice.mode == "none":
        return []
    for name, _ in script.tools:
        if name not in known:
            raise InvalidRequest(f"The script calls the tool {name!r}, which the request does not have.", param="tools")
    if not script.tools and choice.mode == "required" and known:
        name = (choice.names or tuple(known))[0]
        return [(name, shaped.arguments.get(name, "{}"))]
    return script.tools


def _tool_tokens(calls: list[tuple[str, str]]) -> Iterator[Delta]:
    """The id and the name of a call come with its first token, as dialects expect it of every engine."""
    for index, (name, arguments) in enumerate(calls):
        first, *rest = tokenise(arguments)
        yield ToolCallDelta(index, first, id=f"call_{index}", name=name)
        for token in rest:
            yield ToolCallDelta(index, token)


def _last_user_text(request: EngineRequest) -> str:
    if request.prompt is not None:
        return to_text(request.prompt)
    for message in reversed(request.messages):
        if message.role == "user":
            return "".join(part.text for part in message.content if isinstance(part, Text))
    return ""


_COMMAND = re.compile(r"\[\[fake:\s*(\w+)\s*")


def read_script(text: str, param: str) -> tuple[Script, str]:
    """The commands in a text, and the text without them. Raises `InvalidRequest` for a command that is none."""
    script, plain, position = Script(), "", 0
    while (found := _COMMAND.search(text, position)) is not None:
        plain += text[position : found.start()]
        name, start = found[1], found.end()
        try:
            end = _end_of_command(name, text, start)
            _apply(script, name, text[start:end].strip())
        except ValueError:
            raise InvalidRequest(
                f"[[fake: {name[:32]} ...]] is not a command of the fake engine, or its argument is wrong.", param=param
            ) from None
        position = end + 2
    return script, (plain + text[position:]).strip()


def _end_of_command(name: str, text: str, start: int) -> int:
    """Where `]]` closes the command; JSON may hold brackets of its own."""
    if name == "tool" and (brace := text.find("{", start)) >= 0:
        _, start = json.JSONDecoder().raw_decode(text, brace)
    return text.index("]]", start)


def _apply(script: Script, name: str, argument: str) -> None:
    match name:
        case "say":
            script.say = argument
        case "clock":
            script.clock = int(argument)
        case "think":
            script.think = argument
        case "length":
            script.length = int(argument)
        case "tool":
            tool, _, arguments = argument.partition(" ")
            script.tools.append((tool, json.dumps(json.loads(arguments or "{}"))))
        case "refuse":
            script.refuse = True
        case "slow":
            script.slow_s = float(argument)
        case "error":
            script.error_at = int(argument)
        case "crash":
            script.crash_at = int(argument)
        case "break":
            script.breaks = True
        case "hang":
            script.hang = True
        case _:
            raise ValueError(name)


def crash(message: str) -> None:
    """Ends the process the hard way if it is an engine's own; in anybody else's raises `EngineFailed`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.startswith("sightline.engines.worker"):
        os._exit(CRASH_STATUS)
    raise EngineFailed(message)
