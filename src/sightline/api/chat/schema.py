"""Chat completions on the wire: the request's fields with their ranges, and the reply's objects.

Source: openai-openapi 2.3.0, `CreateChatCompletionRequest`, `CreateChatCompletionResponse` and
`CreateChatCompletionStreamResponse`; the fields that are ours are marked. What is not named here is ignored, as are, on
purpose: user, safety_identifier, store, service_tier, reasoning_effort, verbosity, prediction, prompt_cache_key,
prompt_cache_retention, prompt_cache_options, moderation, web_search_options.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from sightline.api.content import MessageBody
from sightline.api.extension import Extension
from sightline.api.fields import (
    array,
    boolean,
    described,
    identifier,
    integer,
    invalid,
    later,
    mapping,
    missing,
    one_of,
    read,
    refused,
    string,
    struct,
    to_schema,
    wrong_type,
)
from sightline.api.sampling import INT64, SamplingFields
from sightline.errors import UnsupportedFeature
from sightline.types import FinishReason, ResponseFormat, Tool, ToolChoice

MAX_TOOLS = 128
MAX_METADATA = 16


# --- rules of single fields ------------------------------------------------------------------------------------------


_name = identifier(64)


@described(
    {"type": "object", "maxProperties": MAX_METADATA, "additionalProperties": {"type": "string", "maxLength": 512}}
)
def _metadata(value: Any, at: str) -> None:
    """Checked, then ignored."""
    if len(mapping(value, at)) > MAX_METADATA:
        raise invalid(at, f"must have at most {MAX_METADATA} pairs")
    for key, given in value.items():
        string(max_length=64)(key, at)
        string(max_length=512)(given, f"{at}.{key[:64]}")


@described({"type": "array", "items": {"const": "text"}})
def _modalities(value: Any, at: str) -> None:
    if array(one_of("text", "audio"))(value, at) != ("text",):
        raise UnsupportedFeature("Only text comes out of this server: 'modalities' can be ['text'].", param=at)


class JsonSchema(msgspec.Struct, frozen=True, kw_only=True):
    name: Annotated[str, _name]
    schema: Annotated[dict[str, Any], mapping]
    description: Annotated[str, string()] = ""
    strict: Annotated[bool, boolean] = False


class ResponseFormatBody(msgspec.Struct, frozen=True, kw_only=True):
    type: Annotated[Any, one_of("text", "json_object", "json_schema")]
    json_schema: Annotated[JsonSchema | None, struct(JsonSchema)] = None


@described(ResponseFormatBody)
def _response_format(value: Any, at: str) -> ResponseFormat:
    body = read(ResponseFormatBody, value, at)
    if body.type != "json_schema":
        return ResponseFormat(body.type)
    if body.json_schema is None:
        raise missing(f"{at}.json_schema")
    return ResponseFormat("json_schema", body.json_schema.schema, body.json_schema.strict, f"{at}.json_schema.schema")


class Function(msgspec.Struct, frozen=True, kw_only=True):
    name: Annotated[str, _name]
    description: Annotated[str, string()] = ""
    parameters: Annotated[dict[str, Any], mapping] = {}
    strict: Annotated[bool, boolean] = False


class ToolBody(msgspec.Struct, frozen=True, kw_only=True):
    type: Annotated[Any, one_of("function", "custom")]
    function: Annotated[Function | None, struct(Function)] = None


@described(ToolBody)
def _tool(value: Any, at: str) -> Tool:
    body = read(ToolBody, value, at)
    if body.type == "custom":
        raise UnsupportedFeature("Custom tools are not supported; use tools of type 'function'.", param=f"{at}.type")
    if body.function is None:
        raise missing(f"{at}.function")
    f = body.function
    return Tool(f.name, f.description, f.parameters, f.strict, f"{at}.function.parameters")


class FunctionName(msgspec.Struct, frozen=True, kw_only=True):
    name: Annotated[str, _name]


class NamedTool(msgspec.Struct, frozen=True, kw_only=True):
    type: Annotated[Any, one_of("function")]
    function: Annotated[FunctionName, struct(FunctionName)]


class AllowedTools(msgspec.Struct, frozen=True, kw_only=True):
    mode: Annotated[Any, one_of("auto", "required")]
    tools: Annotated[tuple[NamedTool, ...], array(struct(NamedTool), min_length=1, max_length=MAX_TOOLS)]


class ToolChoiceBody(msgspec.Struct, frozen=True, kw_only=True):
    type: Annotated[Any, one_of("function", "allowed_tools", "custom")]
    function: Annotated[FunctionName | None, struct(FunctionName)] = None
    allowed_tools: Annotated[AllowedTools | None, struct(AllowedTools)] = None


@described({"anyOf": [to_schema(one_of("none", "auto", "required")), ToolChoiceBody]})
def _tool_choice(value: Any, at: str) -> ToolChoice:
    """With `auto`, `names` are what the request's tools are to be narrowed to."""
    if isinstance(value, str):
        return ToolChoice(one_of("none", "auto", "required")(value, at))
    if not isinstance(value, dict):
        raise wrong_type(at, "a string or an object", value)
    body = read(ToolChoiceBody, value, at)
    match body.type:
        case "function":
            if body.function is None:
                raise missing(f"{at}.function")
            return ToolChoice("required", (body.function.name,))
        case "allowed_tools":
            if body.allowed_tools is None:
                raise missing(f"{at}.allowed_tools")
            allowed = body.allowed_tools
            return ToolChoice(allowed.mode, tuple(t.function.name for t in allowed.tools))
        case _:
            raise UnsupportedFeature("Custom tools are not supported.", param=f"{at}.type")


# --- the request -----------------------------------------------------------------------------------------------------


class ChatBody(SamplingFields, frozen=True, kw_only=True):
    model: Annotated[str, string(min_length=1)]
    messages: Annotated[tuple[Any, ...], array(later(MessageBody), min_length=1)]

    max_completion_tokens: Annotated[int | None, integer(1)] = None
    max_tokens: Annotated[int | None, integer(1)] = None
    """The older name of the same bound; the newer one wins."""
    logprobs: Annotated[bool, boolean] = False
    top_logprobs: Annotated[int | None, integer(0, 20)] = None
    response_format: Annotated[ResponseFormat, _response_format] = ResponseFormat()
    tools: Annotated[tuple[Tool, ...], array(_tool, max_length=MAX_TOOLS)] = ()
    tool_choice: Annotated[ToolChoice | None, _tool_choice] = None
    parallel_tool_calls: Annotated[bool, boolean] = True
    metadata: Annotated[None, _metadata] = None
    modalities: Annotated[None, _modalities] = None

    # Ours (wire contract, section 13).
    max_pixels: Annotated[int | None, integer(1, INT64 - 1)] = None
    min_pixels: Annotated[int | None, integer(1, INT64 - 1)] = None

    audio: Annotated[None, refused("only text comes out of this server.")] = None
    functions: Annotated[None, refused("use 'tools'.")] = None
    function_call: Annotated[None, refused("use 'tool_choice'.")] = None
    chat_template: Annotated[None, refused("the model's own template is used, never a client's.")] = None
    chat_template_kwargs: Annotated[None, refused("the model's own template is used as it is.")] = None
    mm_processor_kwargs: Annotated[None, refused("use 'max_pixels', 'min_pixels' or 'detail'.")] = None
    media_io_kwargs: Annotated[None, refused("use 'max_pixels', 'min_pixels' or 'detail'.")] = None
    prompt_embeds: Annotated[None, refused("send text and pictures.")] = None


REFUSED_PREFIX = "guided_"
"""Fields that other servers have for structured output."""


# --- the reply -------------------------------------------------------------------------------------------------------


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: tuple[int, ...] | None


class ContentLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: tuple[int, ...] | None
    top_logprobs: list[TopLogprob]


class Logprobs(msgspec.Struct, frozen=True):
    content: list[ContentLogprob] | None
    refusal: None = None


class FunctionCall(msgspec.Struct, frozen=True):
    arguments: str
    name: str | UnsetType = UNSET


class ToolCallReply(msgspec.Struct, frozen=True):
    id: str
    function: FunctionCall
    type: str = "function"


class AssistantMessage(msgspec.Struct, frozen=True, kw_only=True):
    role: str = "assistant"
    content: str | None
    refusal: str | None = None
    annotations: tuple[()] = ()
    tool_calls: list[ToolCallReply] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET


class Choice(msgspec.Struct, frozen=True):
    index: int
    message: AssistantMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class PromptTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    cached_tokens: int
    audio_tokens: int = 0
    image_tokens: int
    text_tokens: int


class CompletionTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    reasoning_tokens: int
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class UsageReply(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    system_fingerprint: str | UnsetType
    choices: list[Choice]
    usage: UsageReply
    sightline: Extension


class ToolCallPiece(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: FunctionCall


class DeltaReply(msgspec.Struct, frozen=True, kw_only=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    refusal: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: tuple[ToolCallPiece, ...] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: DeltaReply
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str | UnsetType
    choices: tuple[ChunkChoice, ...]
    usage: UsageReply | UnsetType | None = UNSET
    sightline: Extension | UnsetType = UNSET
