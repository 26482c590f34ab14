"""The Responses API on the wire: the request's fields with their ranges.

Source: openai-openapi 2.3.0, `CreateResponse`, and Open Responses 2026-04-24, `CreateResponseBody`, which adds
`presence_penalty` and `frequency_penalty`; the fields that are ours are marked. What is not named here is ignored, as
are, on purpose: user, safety_identifier and prompt_cache_key (but told back), service_tier, prompt_cache_retention,
prompt_cache_options, moderation.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from sightline.api.chat.schema import MAX_METADATA, MAX_TOOLS, REFUSED_PREFIX
from sightline.api.fields import (
    array,
    boolean,
    described,
    identifier,
    integer,
    invalid,
    mapping,
    missing,
    one_of,
    read,
    refused,
    string,
    struct,
    tagged,
    to_schema,
    wrong_type,
)
from sightline.api.responses.items import ITEM
from sightline.api.sampling import INT64, CommonFields
from sightline.errors import UnsupportedFeature
from sightline.types import ResponseFormat, Tool, ToolChoice

LOGPROBS = "message.output_text.logprobs"
IMAGE_URLS = "message.input_image.image_url"
INCLUDABLE = (
    LOGPROBS,
    IMAGE_URLS,
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)
"""What `include` may ask for. Only the first two exist here: reasoning is told in plain text, and the others are parts
of the output of tools that a request cannot have."""


# --- rules of single fields ------------------------------------------------------------------------------------------


_name = identifier(64)


@described({"anyOf": [{"type": "string"}, {"type": "array", "items": ITEM}]})
def input_rule(value: Any, at: str) -> Any:
    if not isinstance(value, str | list):
        raise wrong_type(at, "a string or an array of items", value)
    return value


@described(
    {"type": "object", "maxProperties": MAX_METADATA, "additionalProperties": {"type": "string", "maxLength": 512}}
)
def _metadata(value: Any, at: str) -> dict[str, str]:
    if len(mapping(value, at)) > MAX_METADATA:
        raise invalid(at, f"must have at most {MAX_METADATA} pairs")
    for key, given in value.items():
        string(max_length=64)(key, at)
        string(max_length=512)(given, f"{at}.{key[:64]}")
    return dict(value)


class FunctionTool(msgspec.Struct, frozen=True, kw_only=True):
    """As it is sent, and as it is told back."""

    type: str = "function"
    name: Annotated[str, _name]
    description: Annotated[str | None, string()] = None
    parameters: Annotated[dict[str, Any] | None, mapping] = None
    strict: Annotated[bool, boolean] = False

    def to_tool(self, param: str) -> Tool:
        """`param`: where its schema stands."""
        return Tool(self.name, self.description or "", self.parameters or {}, self.strict, param)


class TypeOf(msgspec.Struct, frozen=True, kw_only=True):
    type: Annotated[str, string(min_length=1)]


@described(tagged(FunctionTool, "function"))
def _tool(value: Any, at: str) -> FunctionTool:
    kind = read(TypeOf, value, at).type
    if kind != "function":
        raise UnsupportedFeature(
            f"Tools of the type {kind[:64]!r} are run by the vendor's servers, not by this one; only those of the type "
            "'function', which you run yourself, are supported.",
            param=f"{at}.type",
        )
    return read(FunctionTool, value, at)


class NamedFunction(msgspec.Struct, frozen=True, kw_only=True):
    type: Annotated[str, one_of("function")] = "function"
    name: Annotated[str, _name]


class AllowedTools(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "allowed_tools"
    mode: Annotated[Any, one_of("auto", "required")]
    tools: Annotated[tuple[NamedFunction, ...], array(struct(NamedFunction), min_length=1, max_length=MAX_TOOLS)]


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    choice: ToolChoice
    """With `auto`, `names` are what the request's tools are to be narrowed to."""
    told: str | NamedFunction | AllowedTools
    """As the response tells it back."""


@described(
    {
        "anyOf": [
            to_schema(one_of("none", "auto", "required")),
            tagged(NamedFunction, "function"),
            tagged(AllowedTools, "allowed_tools"),
        ]
    }
)
def _tool_choice(value: Any, at: str) -> Choice:
    if isinstance(value, str):
        mode = one_of("none", "auto", "required")(value, at)
        return Choice(choice=ToolChoice(mode), told=mode)
    if not isinstance(value, dict):
        raise wrong_type(at, "a string or an object", value)
    match kind := read(TypeOf, value, at).type:
        case "function":
            function = read(NamedFunction, value, at)
            return Choice(choice=ToolChoice("required", (function.name,)), told=function)
        case "allowed_tools":
            allowed = read(AllowedTools, value, at)
            return Choice(choice=ToolChoice(allowed.mode, tuple(t.name for t in allowed.tools)), told=allowed)
        case _:
            raise UnsupportedFeature(
                f"'tool_choice' cannot ask for {kind[:64]!r} here: only tools of the type 'function' are supported.",
                param=f"{at}.type",
            )


class FormatBody(msgspec.Struct, frozen=True, kw_only=True):
    type: Annotated[Any, one_of("text", "json_object", "json_schema")]
    name: Annotated[str | None, _name] = None
    description: Annotated[str | None, string()] = None
    schema: Annotated[dict[str, Any] | None, mapping] = None
    strict: Annotated[bool, boolean] = False


class Format(msgspec.Struct, frozen=True, kw_only=True):
    format: ResponseFormat = ResponseFormat()
    told: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "text"})
    """As the response tells it back."""


@described(FormatBody)
def _format(value: Any, at: str) -> Format:
    body = read(FormatBody, value, at)
    if body.type != "json_schema":
        return Format(format=ResponseFormat(body.type), told={"type": body.type})
    for name in ("name", "schema"):
        if getattr(body, name) is None:
            raise missing(f"{at}.{name}")
    told = {key: given for key, given in msgspec.structs.asdict(body).items() if given is not None}
    return Format(format=ResponseFormat("json_schema", body.schema, body.strict, f"{at}.schema"), told=told)


class TextBody(msgspec.Struct, frozen=True, kw_only=True):
    format: Annotated[Format, _format] = Format()
    verbosity: Annotated[str | None, one_of("low", "medium", "high")] = None


class Reasoning(msgspec.Struct, frozen=True, kw_only=True):
    """Told back; how long a model reasons is the model's own affair, and what it reasons is given in full."""

    effort: Annotated[str | None, one_of("none", "minimal", "low", "medium", "high", "xhigh", "max")] = None
    summary: Annotated[str | None, one_of("auto", "concise", "detailed")] = None


# --- the request -----------------------------------------------------------------------------------------------------


class ResponsesBody(CommonFields, frozen=True, kw_only=True):
    model: Annotated[str, string(min_length=1)]
    input: Annotated[Any, input_rule] = None
    """A string, or a list of items."""
    instructions: Annotated[str | None, string()] = None
    previous_response_id: Annotated[str | None, string(min_length=1)] = None

    max_output_tokens: Annotated[int | None, integer(1)] = None
    top_logprobs: Annotated[int, integer(0, 20)] = 0
    tools: Annotated[tuple[FunctionTool, ...], array(_tool, max_length=MAX_TOOLS)] = ()
    tool_choice: Annotated[Choice | None, _tool_choice] = None
    parallel_tool_calls: Annotated[bool, boolean] = True
    max_tool_calls: Annotated[int | None, integer(1)] = None
    """Bounds calls of the vendor's own tools, of which there are none here: told back."""
    text: Annotated[TextBody, struct(TextBody)] = TextBody()
    reasoning: Annotated[Reasoning | None, struct(Reasoning)] = None
    include: Annotated[tuple[str, ...], array(one_of(*INCLUDABLE))] = ()
    truncation: Annotated[str, one_of("auto", "disabled")] = "disabled"
    store: Annotated[bool, boolean] = True
    background: Annotated[bool, boolean] = False
    metadata: Annotated[dict[str, str], _metadata] = msgspec.field(default_factory=dict)
    user: Annotated[str | None, string()] = None
    safety_identifier: Annotated[str | None, string()] = None
    prompt_cache_key: Annotated[str | None, string()] = None

    # Ours (wire contract, section 13).
    max_pixels: Annotated[int | None, integer(1, INT64 - 1)] = None
    min_pixels: Annotated[int | None, integer(1, INT64 - 1)] = None

    prompt: Annotated[None, refused("prompts are not kept here; send 'input' and 'instructions'.")] = None
    conversation: Annotated[None, refused("use 'previous_response_id'.")] = None
    context_management: Annotated[None, refused("use 'truncation'.")] = None
    chat_template: Annotated[None, refused("the model's own template is used, never a client's.")] = None
    chat_template_kwargs: Annotated[None, refused("the model's own template is used as it is.")] = None
    mm_processor_kwargs: Annotated[None, refused("use 'max_pixels', 'min_pixels' or 'detail'.")] = None
    media_io_kwargs: Annotated[None, refused("use 'max_pixels', 'min_pixels' or 'detail'.")] = None
    prompt_embeds: Annotated[None, refused("send text and pictures.")] = None

    @property
    def wants_logprobs(self) -> bool:
        return self.top_logprobs > 0 or LOGPROBS in self.include


def read_responses_body(raw: dict[str, Any]) -> ResponsesBody:
    """The body's fields, each checked by itself. Raises `InvalidRequest` or `UnsupportedFeature`."""
    for name, value in raw.items():
        if name.startswith(REFUSED_PREFIX) and value is not None:
            shown = name[:64]
            raise UnsupportedFeature(f"'{shown}' is not supported: use 'text.format'.", param=shown)
    return read(ResponsesBody, raw)
