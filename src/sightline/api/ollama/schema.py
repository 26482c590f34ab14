"""Ollama's API on the wire: the requests' fields with their ranges, and the replies' objects.

Source: ollama/ollama at fb307609, api/types.go (`ChatRequest`, `GenerateRequest`, `Options`, `ChatResponse`). What is
not named here is ignored, as Ollama ignores options that it does not know. Options that only say how Ollama's own
runner is loaded (num_ctx, num_gpu, ...) are checked and have no effect: here the operator says so, and what does not
fit into a model's context is refused, never cut off.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from sightline.api.chat.schema import Function
from sightline.api.embeddings import MAX_ITEMS
from sightline.api.fields import (
    Rule,
    array,
    boolean,
    described,
    integer,
    invalid,
    later,
    mapping,
    number,
    one_of,
    read,
    string,
    struct,
    to_schema,
    wrong_type,
)
from sightline.errors import UnsupportedFeature
from sightline.types import ResponseFormat, Tool

_INT64 = 2**63
MAX_STOPS = 64
MAX_TOOLS = 128


# --- rules of single fields ------------------------------------------------------------------------------------------


def _whole(low: int | None = None, high: int | None = None) -> Rule[int]:
    """An integer; also one that is written with a fraction of zero, as Ollama has it."""
    rule = integer(low, high)

    @described(to_schema(rule))
    def whole(value: Any, at: str) -> int:
        return rule(int(value) if isinstance(value, float) and value.is_integer() else value, at)

    return whole


def _only(default: float, why: str) -> Callable[[Any, str], None]:
    """A number that would change the answer and that no engine here has: it can only say what holds anyway."""

    @described({"const": default, "description": f"No other value is supported: {why}"})
    def rule(value: Any, at: str) -> None:
        if number(-float("inf"), float("inf"))(value, at) != default:
            raise UnsupportedFeature(f"'{at}' is not supported: {why}", param=at)

    return rule


def _absent(why: str) -> Callable[[Any, str], None]:
    """A field that clients send empty when they do not mean it."""

    @described({"enum": ["", [], 0, False], "description": f"Not supported: {why}"})
    def rule(value: Any, at: str) -> None:
        if value not in ("", [], 0, False):
            raise UnsupportedFeature(f"'{at}' is not supported: {why}", param=at)

    return rule


@described({"anyOf": [to_schema(string(min_length=1)), to_schema(array(string(min_length=1), max_length=MAX_STOPS))]})
def _stop(value: Any, at: str) -> tuple[str, ...]:
    one = string(min_length=1)
    return (one(value, at),) if isinstance(value, str) else array(one, max_length=MAX_STOPS)(value, at)


@described({"anyOf": [{"enum": ["", "json"]}, {"type": "object"}]})
def _format(value: Any, at: str) -> ResponseFormat:
    match value:
        case "":
            return ResponseFormat()
        case "json":
            return ResponseFormat("json_object")
        case dict():
            return ResponseFormat("json_schema", value, param=at)
        case str():
            raise invalid(at, "must be 'json' or a JSON schema")
        case _:
            raise wrong_type(at, "'json' or a JSON schema", value)


@described({"anyOf": [{"type": "boolean"}, {"enum": ["low", "medium", "high", "max"]}]})
def _think(value: Any, at: str) -> bool:
    """Whether the reply shows what the model thinks. Whether and how long it thinks is the model's nature."""
    if isinstance(value, str):
        one_of("low", "medium", "high", "max")(value, at)
        return True
    return boolean(value, at)


_DURATION = re.compile(r"[+-]?(?:0|(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|ms|s|m|h))+)", re.ASCII)
_NONZERO = re.compile(r"[1-9]")


@described({"type": ["number", "string"], "pattern": f"^(?:{_DURATION.pattern})$"})
def _keep_alive(value: Any, at: str) -> bool:
    """Seconds, or a text such as `5m`. Whether the model is to stay loaded at all."""
    if isinstance(value, str):
        if not _DURATION.fullmatch(value):
            raise invalid(at, "must be a duration with its unit, such as '5m' or '30s', or a number of seconds")
        return _NONZERO.search(value) is not None
    return number(-float("inf"), float("inf"))(value, at) != 0


class ToolBody(msgspec.Struct, frozen=True, kw_only=True):
    type: Annotated[str, one_of("function")] = "function"
    function: Annotated[Function, struct(Function)]


@described(ToolBody)
def _tool(value: Any, at: str) -> Tool:
    f = read(ToolBody, value, at).function
    return Tool(f.name, f.description, f.parameters, f.strict, f"{at}.function.parameters")


# --- options ---------------------------------------------------------------------------------------------------------

_NO_MIROSTAT = "no engine here has it; use 'top_p', 'top_k' or 'min_p'."
_NO_TYPICAL = "no engine here has it; use 'min_p'."


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is not given is the model's own: a temperature of 1, nothing cut off, no penalties, until it ends."""

    temperature: Annotated[float, number(0, 2)] = 1.0
    top_p: Annotated[float, number(0, 1)] = 1.0
    top_k: Annotated[int, _whole(-1)] = 0
    min_p: Annotated[float, number(0, 1)] = 0.0
    seed: Annotated[int, _whole(-_INT64, _INT64 - 1)] = -1
    """Below 0: chance."""
    num_predict: Annotated[int, _whole(-2, _INT64 - 1)] = -1
    """-1 and -2, without end and until the context is full, are one here."""
    stop: Annotated[tuple[str, ...], _stop] = ()
    presence_penalty: Annotated[float, number(-2, 2)] = 0.0
    frequency_penalty: Annotated[float, number(-2, 2)] = 0.0
    repeat_penalty: Annotated[float, number(0, 2, above=True)] = 1.0
    """Of all that was said so far: there is no shorter window."""
    repeat_last_n: Annotated[int, _whole(-1)] = -1
    """0 turns `repeat_penalty` off."""

    mirostat: Annotated[None, _only(0, _NO_MIROSTAT)] = None
    tfs_z: Annotated[None, _only(1, _NO_TYPICAL)] = None
    typical_p: Annotated[None, _only(1, _NO_TYPICAL)] = None

    num_ctx: Annotated[int, _whole(0)] = 0
    num_keep: Annotated[int, _whole()] = 0
    num_batch: Annotated[int, _whole()] = 0
    num_gpu: Annotated[int, _whole()] = 0
    main_gpu: Annotated[int, _whole()] = 0
    num_thread: Annotated[int, _whole()] = 0
    numa: Annotated[bool, boolean] = False
    low_vram: Annotated[bool, boolean] = False
    use_mmap: Annotated[bool, boolean] = False
    use_mlock: Annotated[bool, boolean] = False


# --- requests --------------------------------------------------------------------------------------------------------


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that `/api/chat` and `/api/generate` share."""

    model: Annotated[str, string(min_length=1)]
    stream: Annotated[bool, boolean] = True
    options: Annotated[Options, struct(Options)] = Options()
    format: Annotated[ResponseFormat, _format] = ResponseFormat()
    think: Annotated[bool, _think] = True
    keep_alive: Annotated[bool, _keep_alive] = True
    logprobs: Annotated[bool, boolean] = False
    top_logprobs: Annotated[int, _whole(0, 20)] = 0


class ChatBody(Asked, frozen=True, kw_only=True):
    messages: Annotated[tuple[Any, ...], array(later(MessageBody))] = ()
    tools: Annotated[tuple[Tool, ...], array(_tool, max_length=MAX_TOOLS)] = ()


class GenerateBody(Asked, frozen=True, kw_only=True):
    prompt: Annotated[str, string()] = ""
    images: Annotated[tuple[str, ...], array(string(min_length=1))] = ()
    system: Annotated[str, string()] = ""
    raw: Annotated[bool, boolean] = False

    suffix: Annotated[None, _absent("no engine here fills in between two texts.")] = None
    template: Annotated[None, _absent("the model's own template is used, never a client's.")] = None
    context: Annotated[None, _absent("send the conversation itself, to /api/chat.")] = None
    width: Annotated[None, _absent("only text comes out of this server.")] = None
    height: Annotated[None, _absent("only text comes out of this server.")] = None
    steps: Annotated[None, _absent("only text comes out of this server.")] = None


_texts = array(string(min_length=1), max_length=MAX_ITEMS)


@described({"anyOf": [{"type": "string"}, to_schema(_texts)]})
def _input(value: Any, at: str) -> tuple[str, ...]:
    """No text, and an empty one, ask for no vector."""
    if isinstance(value, str):
        return (value,) if value else ()
    if not isinstance(value, list):
        raise wrong_type(at, "a string or an array of strings", value)
    return _texts(value, at)


class EmbedBody(msgspec.Struct, frozen=True, kw_only=True):
    model: Annotated[str, string(min_length=1)]
    input: Annotated[tuple[str, ...], _input]
    truncate: Annotated[bool, boolean] = True
    """Nothing is cut off: a text that is too long is refused."""
    dimensions: Annotated[int | None, _whole(1)] = None
    options: Annotated[Options, struct(Options)] = Options()
    """Checked, then ignored: there is nothing to sample."""
    keep_alive: Annotated[bool, _keep_alive] = True


class EmbeddingsBody(msgspec.Struct, frozen=True, kw_only=True):
    """Of `/api/embeddings`, which came before `/api/embed`."""

    model: Annotated[str, string(min_length=1)]
    prompt: Annotated[str, string()] = ""
    options: Annotated[Options, struct(Options)] = Options()
    keep_alive: Annotated[bool, _keep_alive] = True


class FunctionCallBody(msgspec.Struct, frozen=True, kw_only=True):
    name: Annotated[str, string(min_length=1)]
    arguments: Annotated[dict[str, Any], mapping] = {}


class ToolCallBody(msgspec.Struct, frozen=True, kw_only=True):
    id: Annotated[str | None, string()] = None
    function: Annotated[FunctionCallBody, struct(FunctionCallBody)]


class MessageBody(msgspec.Struct, frozen=True, kw_only=True):
    role: Annotated[Any, one_of("system", "user", "assistant", "tool")]
    content: Annotated[str, string()] = ""
    images: Annotated[tuple[str, ...], array(string(min_length=1))] = ()
    thinking: Annotated[str, string()] = ""
    """Of an earlier answer: read, and left out, because models think anew."""
    tool_calls: Annotated[tuple[ToolCallBody, ...], array(struct(ToolCallBody), max_length=MAX_TOOLS)] = ()
    tool_name: Annotated[str | None, string()] = None
    tool_call_id: Annotated[str | None, string()] = None


class ShowBody(msgspec.Struct, frozen=True, kw_only=True):
    model: Annotated[str | None, string(min_length=1)] = None
    name: Annotated[str | None, string(min_length=1)] = None
    """The older name of the same field."""


# --- replies ---------------------------------------------------------------------------------------------------------


class CalledFunction(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    name: str
    arguments: dict[str, Any]


class ToolCallReply(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    function: CalledFunction


class MessageReply(msgspec.Struct, frozen=True, kw_only=True):
    role: str = "assistant"
    content: str
    thinking: str | UnsetType = UNSET
    tool_calls: list[ToolCallReply] | UnsetType = UNSET


class TopLogprob(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    logprob: float
    bytes: tuple[int, ...]


class Logprob(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    logprob: float
    bytes: tuple[int, ...]
    top_logprobs: list[TopLogprob] | UnsetType = UNSET


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a stream, or a whole answer. `message` is chat's, `response` and `thinking` are generate's; from
    `done_reason` on it stands in the last line only. Durations are nanoseconds."""

    model: str
    created_at: str
    message: MessageReply | UnsetType = UNSET
    response: str | UnsetType = UNSET
    thinking: str | UnsetType = UNSET
    logprobs: list[Logprob] | UnsetType = UNSET
    done: bool = False
    done_reason: str | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    """How long the request waited for its model to be loaded."""
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    """Of pictures and text."""
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET


class EmbedReply(msgspec.Struct, frozen=True, kw_only=True):
    """Durations are nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class EmbeddingsReply(msgspec.Struct, frozen=True, kw_only=True):
    embedding: list[float]


class ErrorReply(msgspec.Struct, frozen=True):
    error: str
