"""Anthropic's messages on the wire: the request's fields with their ranges, and the reply's objects.

Source: the Python SDK `anthropic` 2.11 (`MessageCreateParams`, `Message`, `RawMessageStreamEvent`). What is not named
here is ignored, as are, on purpose: cache_control, inference_geo, speed, user_profile_id, workspace_id, diagnostics and
output_config.effort. What messages hold is `content.py`'s.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from sightline.api.fields import (
    array,
    boolean,
    described,
    identifier,
    integer,
    later,
    mapping,
    missing,
    number,
    one_of,
    read,
    refused,
    string,
    struct,
    to_schema,
)
from sightline.api.messages.content import SYSTEM, TurnBody
from sightline.errors import UnsupportedFeature
from sightline.types import ResponseFormat, Tool, ToolChoice

MAX_STOPS = 64
MAX_TOOLS = 128


# --- rules of single fields ------------------------------------------------------------------------------------------


_name = identifier(128)


class ToolBody(msgspec.Struct, frozen=True, kw_only=True):
    type: Annotated[str, string()] = "custom"
    name: Annotated[str, _name]
    description: Annotated[str, string()] = ""
    input_schema: Annotated[dict[str, Any] | None, mapping] = None
    strict: Annotated[bool, boolean] = False


@described(ToolBody)
def _tool(value: Any, at: str) -> Tool:
    body = read(ToolBody, value, at)
    if body.type != "custom":
        raise UnsupportedFeature(
            f"Tools of the type {body.type[:64]!r} run at Anthropic. Only tools with an 'input_schema' of your own are "
            "supported.",
            param=f"{at}.type",
        )
    if body.input_schema is None:
        raise missing(f"{at}.input_schema")
    return Tool(body.name, body.description, body.input_schema, body.strict, f"{at}.input_schema")


class ToolChoiceBody(msgspec.Struct, frozen=True, kw_only=True):
    type: Annotated[Any, one_of("auto", "any", "tool", "none")]
    name: Annotated[str | None, _name] = None
    disable_parallel_tool_use: Annotated[bool, boolean] = False


@described(ToolChoiceBody)
def _tool_choice(value: Any, at: str) -> ToolChoice:
    body = read(ToolChoiceBody, value, at)
    parallel = not body.disable_parallel_tool_use
    match body.type:
        case "tool":
            if body.name is None:
                raise missing(f"{at}.name")
            return ToolChoice("required", (body.name,), parallel)
        case "any":
            return ToolChoice("required", parallel=parallel)
        case mode:
            return ToolChoice(mode, parallel=parallel)


class ThinkingBody(msgspec.Struct, frozen=True, kw_only=True):
    type: Annotated[str, one_of("enabled", "disabled", "adaptive", "between_tools")]
    budget_tokens: Annotated[int | None, integer(1)] = None
    display: Annotated[str, one_of("summarized", "omitted")] = "summarized"


@described(ThinkingBody)
def _thinking(value: Any, at: str) -> bool:
    """Whether the reply shows what the model thinks. Whether it does think is the model's nature."""
    body = read(ThinkingBody, value, at)
    if body.type in ("enabled", "between_tools"):
        raise UnsupportedFeature(
            f"Thinking of the type {body.type!r} is not supported: this server can neither make a model think nor bound"
            ' it. Leave \'thinking\' out, or send {"type": "adaptive"}: a model that thinks by itself then has its '
            "thoughts in blocks of the type 'thinking'.",
            param=f"{at}.type",
        )
    return body.type == "adaptive" and body.display == "summarized"


class OutputFormat(msgspec.Struct, frozen=True, kw_only=True):
    type: Annotated[str, one_of("json_schema")]
    schema: Annotated[dict[str, Any], mapping]


class OutputConfig(msgspec.Struct, frozen=True, kw_only=True):
    format: Annotated[OutputFormat | None, struct(OutputFormat)] = None


@described(OutputConfig)
def _output_config(value: Any, at: str) -> ResponseFormat:
    wanted = read(OutputConfig, value, at).format
    if wanted is None:
        return ResponseFormat()
    return ResponseFormat("json_schema", wanted.schema, strict=True, param=f"{at}.format.schema")


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """Checked, then ignored."""

    user_id: Annotated[str | None, string(max_length=256)] = None


@described({"type": "array", "items": to_schema(string(min_length=1)), "maxItems": MAX_STOPS})
def _stop(value: Any, at: str) -> tuple[str, ...]:
    return array(string(min_length=1), max_length=MAX_STOPS)(value, at)


# --- the request -----------------------------------------------------------------------------------------------------


class CountBody(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/messages/count_tokens`: the fields that make the prompt."""

    model: Annotated[str, string(min_length=1)]
    messages: Annotated[tuple[Any, ...], array(later(TurnBody), min_length=1)]
    system: Annotated[Any, later(SYSTEM)] = None
    """A string or text blocks."""
    tools: Annotated[tuple[Tool, ...], array(_tool, max_length=MAX_TOOLS)] = ()
    tool_choice: Annotated[ToolChoice | None, _tool_choice] = None
    thinking: Annotated[bool, _thinking] = True
    output_config: Annotated[ResponseFormat, _output_config] = ResponseFormat()

    container: Annotated[None, refused("this server has no containers.")] = None
    mcp_servers: Annotated[None, refused("this server calls no others for a model; offer 'tools'.")] = None


class MessagesBody(CountBody, frozen=True, kw_only=True):
    """`POST /v1/messages`."""

    max_tokens: Annotated[int, integer(1)]
    stop_sequences: Annotated[tuple[str, ...], _stop] = ()
    temperature: Annotated[float, number(0, 1)] = 1.0
    top_p: Annotated[float, number(0, 1)] = 1.0
    top_k: Annotated[int, integer(0)] = 0
    stream: Annotated[bool, boolean] = False
    metadata: Annotated[Metadata | None, struct(Metadata)] = None
    service_tier: Annotated[str, one_of("auto", "standard_only")] = "auto"


# --- the reply -------------------------------------------------------------------------------------------------------

StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal", "pause_turn", "model_context_window_exceeded"
]


class TextBlock(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "text"
    text: str


class ThinkingBlock(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "thinking"
    thinking: str
    signature: str = ""
    """Anthropic's proof that a thought is its own model's. Ours have none, and none is looked at that comes back."""


class ToolUseBlock(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "tool_use"
    id: str
    name: str
    input: dict[str, Any]


Block = TextBlock | ThinkingBlock | ToolUseBlock


class OutputTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    thinking_tokens: int


class UsageReply(msgspec.Struct, frozen=True, kw_only=True):
    """The prompt is what was computed (`input_tokens`) and what was at hand (`cache_read_input_tokens`), together."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    output_tokens_details: OutputTokensDetails | UnsetType = UNSET
    """There where the model has thought."""


class MessageReply(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: str = "message"
    role: str = "assistant"
    model: str
    content: list[Block]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: UsageReply


class InputTokens(msgspec.Struct, frozen=True, kw_only=True):
    input_tokens: int


class MessageStart(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "message_start"
    message: MessageReply


class BlockStart(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "content_block_start"
    index: int
    content_block: Block


class TextPiece(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "text_delta"
    text: str


class ThinkingPiece(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "thinking_delta"
    thinking: str


class SignaturePiece(msgspec.Struct, frozen=True, kw_only=True):
    """The last of a block of the type `thinking`; see `ThinkingBlock`."""

    type: str = "signature_delta"
    signature: str = ""


class InputPiece(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "input_json_delta"
    partial_json: str


Piece = TextPiece | ThinkingPiece | SignaturePiece | InputPiece


class BlockDelta(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "content_block_delta"
    index: int
    delta: Piece


class BlockStop(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "content_block_stop"
    index: int


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "message_delta"
    delta: Stop
    usage: UsageReply


class MessageStop(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "message_stop"


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    message: str


class ErrorReply(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "error"
    error: ErrorDetail
    request_id: str
