"""Between chat completions, which the engine `remote` writes and reads, and Ollama's own API. Pure.

Source: ollama/ollama at fb307609: `ChatRequest`, `ChatResponse`, `Message`, `Options` in api/types.go; where pictures
go in server/prompt.go and llm/llama_server.go.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from sightline.engines.remote.body import Part, Specials, to_body
from sightline.engines.remote.kinds import Kind
from sightline.engines.remote.sse import ServerEvent
from sightline.errors import InvalidRequest, UnsupportedFeature, UpstreamFailed
from sightline.types import EngineRequest

Placing = Literal["inline", "after"]
"""Where Ollama puts pictures: where we write `[img]`, or all after their message's text. Its API has no order of text
and pictures; which of the two it is depends on the model's template and on Ollama's version, and is asked at start."""

PLACE = "[img]"
MARKERS = (PLACE, "[img-", "<__media__>")
"""Texts that Ollama, and llama.cpp in it, take for the place of a picture, whoever wrote them."""

KIND = Kind(
    features=frozenset({"seed", "top_k", "min_p", "penalties", "logprobs", "tools", "json_object", "json_schema"}),
    state="api/tags",
    is_ready=lambda reply, model: True,
    stops="here",  # it does not say which it met
    names={"max_tokens": "num_predict", "repetition_penalty": "repeat_penalty"},
    lacks=frozenset({"min_tokens", "ignore_eos", "stop_token_ids", "logit_bias"}),
)
"""What its requests can hold, in the terms of `remote`."""

_OPTIONS = {
    "temperature", "top_p", "top_k", "min_p", "seed", "num_predict", "presence_penalty", "frequency_penalty",
    "repeat_penalty",
}  # fmt: skip
_DEFAULTS: Mapping[str, Any] = {
    "top_k": 0, "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repeat_penalty": 1.0,
    "num_predict": -1,
}  # fmt: skip
"""What a request that does not say means; Ollama's own defaults, and those of a Modelfile, differ."""
_SEEDS = 2**31
"""Ollama reads seeds as floating-point numbers and passes 32 bits on, where -1 is chance."""
_DATA_URI = "data:image/png;base64,"

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


# --- requests --------------------------------------------------------------------------------------------------------


def to_request(
    request: EngineRequest, model: str, parts: Sequence[Part], specials: Specials, placing: Placing
) -> dict[str, Any]:
    """The body of `POST /api/chat`, or for plain text of `POST /api/generate`. `parts` are the request's pictures, in
    order, as PNG data URIs.

    Raises `UnsupportedFeature` or `InvalidRequest` for what Ollama has no field for.
    """
    _check(request)
    body = to_body(request, model, KIND, parts, specials)
    options = {**_DEFAULTS, **{name: body[name] for name in _OPTIONS & body.keys()}}
    if "seed" in options:
        options["seed"] %= _SEEDS
    fields: dict[str, Any] = {
        "model": model,
        **_to_prompt(request, body, specials, placing),
        "options": options,
        "stream": True,
        # Never a prompt or an answer of which Ollama has quietly left out the beginning.
        "truncate": False,
        "shift": False,
    }
    if "tools" in body and request.tool_choice.mode != "none":
        fields["tools"] = [_to_tool(tool) for tool in body["tools"]]
    if "logprobs" in body:
        fields |= {"logprobs": True, "top_logprobs": body["top_logprobs"]}
    if "response_format" in body:
        wanted = body["response_format"]
        fields["format"] = wanted["json_schema"]["schema"] if wanted["type"] == "json_schema" else "json"
    return fields


def _to_prompt(request: EngineRequest, body: Mapping[str, Any], specials: Specials, placing: Placing) -> dict[str, Any]:
    if request.prompt is None:
        return {"messages": _to_messages(body["messages"], placing)}
    if not isinstance(request.prompt, str):
        raise UnsupportedFeature("Ollama takes texts, and no token ids.", param="prompt")
    return {"prompt": specials.broken(request.prompt), "raw": True}


def _check(request: EngineRequest) -> None:
    if request.tools and request.tool_choice.mode == "required":
        raise UnsupportedFeature(
            "Ollama cannot be told that a tool must be called; use tool_choice 'auto'.", param="tool_choice"
        )
    if any(tool.strict for tool in request.tools):
        raise UnsupportedFeature(
            "Ollama does not hold a call's arguments to the tool's schema; leave out 'strict'.", param="tools"
        )
    if any(message.name is not None for message in request.messages if message.role != "tool"):
        raise UnsupportedFeature("Ollama has no field for the name of who speaks; leave out 'name'.", param="messages")


def _to_messages(messages: Sequence[Mapping[str, Any]], placing: Placing) -> list[dict[str, Any]]:
    names = {call["id"]: call["function"]["name"] for m in messages for call in m.get("tool_calls", ())}
    converted = []
    for message in messages:
        fields = {"role": message["role"], **_to_content(message["content"], placing)}
        if "tool_calls" in message:
            fields["tool_calls"] = [_to_call(index, call) for index, call in enumerate(message["tool_calls"])]
        if message["role"] == "tool":
            call_id = message.get("tool_call_id", "")
            fields |= {"tool_call_id": call_id, "tool_name": message.get("name") or names.get(call_id, "")}
        converted.append(fields)
    return converted


def _to_content(content: Any, placing: Placing) -> dict[str, Any]:
    """Bare base64; with `inline`, a mark where each picture stood."""
    if content is None or isinstance(content, str):
        return {"content": content or ""}
    images = [p["image_url"]["url"].removeprefix(_DATA_URI) for p in content if p["type"] == "image_url"]
    if placing == "inline":
        return {"content": "".join(p["text"] if p["type"] == "text" else PLACE for p in content), "images": images}
    # A line between them, so that no special token is made of two.
    return {"content": "\n".join(p["text"] for p in content if p["type"] == "text"), "images": images}


def _to_call(index: int, call: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments are an object here, a text of JSON there."""
    try:
        arguments = json.loads(call["function"]["arguments"] or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequest("The arguments of a tool call must be a JSON object, as text.", param="messages")
    return {
        "id": call["id"],
        "function": {"index": index, "name": call["function"]["name"], "arguments": arguments},
    }


def _to_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {}, **tool["function"]["parameters"]}
    return {"type": "function", "function": {**tool["function"], "parameters": parameters}}


# --- answers ---------------------------------------------------------------------------------------------------------


class _CalledFunction(msgspec.Struct):
    name: str
    arguments: dict[str, Any] = {}


class _Call(msgspec.Struct):
    function: _CalledFunction
    id: str | None = None


class _Message(msgspec.Struct):
    content: str = ""
    thinking: str = ""
    tool_calls: tuple[_Call, ...] = ()


class _Line(msgspec.Struct):
    message: _Message | None = None
    response: str | None = None
    """Of plain text, in the message's place."""
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: _Count = 0
    eval_count: _Count = 0
    logprobs: list[dict[str, Any]] | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Line)
DONE = ServerEvent("[DONE]")


class Lines:
    """The lines of one answer as the events of a streamed chat completion. `remote.answer.Answer` reads these."""

    def __init__(self) -> None:
        self._num_calls = 0

    def to_events(self, line: bytes) -> list[ServerEvent]:
        """Raises `UpstreamFailed` for what is no line of an answer."""
        try:
            said = _decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeError):
            raise UpstreamFailed("The server behind this model sent what is no answer.") from None
        if said.error is not None:
            return [_event({"error": {}})]
        chunk: dict[str, Any] = {"choices": [self._choice(said)]}
        if not said.done:
            return [_event(chunk)]
        chunk["usage"] = {"prompt_tokens": said.prompt_eval_count, "completion_tokens": said.eval_count}
        return [_event(chunk), DONE]

    def _choice(self, said: _Line) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if said.message is not None:
            delta = {"content": said.message.content, "reasoning_content": said.message.thinking}
            delta["tool_calls"] = [self._call(call) for call in said.message.tool_calls]
        elif said.response is not None:
            delta = {"content": said.response}
        choice: dict[str, Any] = {"delta": delta}
        if said.logprobs:
            choice["logprobs"] = {"content": said.logprobs}
        if said.done:
            called = said.done_reason == "stop" and self._num_calls > 0
            choice["finish_reason"] = "tool_calls" if called else said.done_reason or "unknown"
        return choice

    def _call(self, call: _Call) -> dict[str, Any]:
        """Each is whole. They are counted here: the index that Ollama gives has not always told them apart."""
        index, self._num_calls = self._num_calls, self._num_calls + 1
        arguments = json.dumps(call.function.arguments, ensure_ascii=False)
        return {"index": index, "id": call.id, "function": {"name": call.function.name, "arguments": arguments}}


def _event(chunk: dict[str, Any]) -> ServerEvent:
    return ServerEvent(msgspec.json.encode(chunk).decode())
