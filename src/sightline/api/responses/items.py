"""Items of the Responses API: what a client sends becomes items of one form, and items become messages. Pure.

    read_items    body      -> items, each with an id and with nothing in it that was not checked
    to_messages   items     -> messages; a whole conversation, earlier responses' items before the new ones

| item | becomes |
|---|---|
| message (with or without `type`) | a message of its role; pictures in a user's only |
| function_call | a tool call of the assistant's message before it, or of one of its own |
| function_call_output | a tool message; its pictures follow in a user message, where every model takes them |
| item_reference | the stored item of that id (`routes.py` looks it up) |
| reasoning | nothing: a model is not shown what it once thought |
| compaction | what the assistant remembers of a conversation: `compact.py` made it |
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import msgspec

from sightline.api.content import PictureDefaults
from sightline.api.exchange import new_id
from sightline.api.fields import (
    Schema,
    array,
    described,
    integer,
    invalid,
    later,
    missing,
    one_of,
    read,
    string,
    tagged,
    wrong_type,
)
from sightline.config import HttpLimits
from sightline.errors import InvalidRequest, UnsupportedFeature
from sightline.types import Detail, FileId, ImageRef, Message, Role, Text, ToolCall

Item = dict[str, Any]
"""As the wire has it, and never changed once it is made: stored responses share them."""

_ROLES: Mapping[str, Role] = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}
_PARTS: Mapping[Role, tuple[str, ...]] = {
    "system": ("input_text",),
    "user": ("input_text", "input_image", "input_file"),
    "assistant": ("output_text", "refusal", "input_text"),
    "tool": ("input_text", "input_image", "input_file"),
}
_ALL_PARTS = ("input_text", "input_image", "input_file", "output_text", "refusal")
_ITEMS = ("message", "function_call", "function_call_output", "reasoning", "compaction", "item_reference")
_MAX_PIXELS = 2**63 - 1
_SEAL = "sightline1."
_REMEMBERED = "What was said before, in short: "


@dataclass(frozen=True, slots=True)
class Placed:
    item: Item
    at: str
    """Where it stands, as errors name it: `input[2]`, or `previous_response_id[2]` of what came before."""


# --- what is sent ----------------------------------------------------------------------------------------------------


class PartType(msgspec.Struct, frozen=True, kw_only=True):
    type: Annotated[str, one_of(*_ALL_PARTS)]


class TextPart(msgspec.Struct, frozen=True, kw_only=True):
    text: Annotated[str, string()]


class RefusalPart(msgspec.Struct, frozen=True, kw_only=True):
    refusal: Annotated[str, string()]


class PicturePart(msgspec.Struct, frozen=True, kw_only=True):
    """`max_pixels`, `min_pixels` and `uuid` are ours."""

    image_url: Annotated[str | None, string(min_length=1)] = None
    file_id: Annotated[str | None, string(min_length=1)] = None
    """Of a file at `/v1/files`, in place of `image_url`."""
    detail: Annotated[Detail, one_of("auto", "low", "high", "original")] = "auto"
    max_pixels: Annotated[int | None, integer(1, _MAX_PIXELS)] = None
    min_pixels: Annotated[int | None, integer(1, _MAX_PIXELS)] = None
    uuid: Annotated[str | None, string(min_length=1, max_length=256)] = None


def _part(value: Any, at: str, role: Role, owner: str) -> Item:
    """`owner` is how an error names what the part stands in."""
    kind = read(PartType, value, at).type
    if kind not in _PARTS[role]:
        raise invalid(f"{at}.type", f"cannot be {kind!r} in {owner}")
    match kind:
        case "output_text":
            return {"type": kind, "text": read(TextPart, value, at).text, "annotations": [], "logprobs": []}
        case "input_text" if role == "assistant":
            return {"type": "output_text", "text": read(TextPart, value, at).text, "annotations": [], "logprobs": []}
        case "input_text":
            return {"type": kind, "text": read(TextPart, value, at).text}
        case "refusal":
            return {"type": kind, "refusal": read(RefusalPart, value, at).refusal}
        case "input_image":
            part = msgspec.structs.asdict(read(PicturePart, value, at))
            if part["image_url"] is None and part["file_id"] is None:
                raise missing(f"{at}.image_url")
            if part["image_url"] is not None and part["file_id"] is not None:
                raise invalid(f"{at}.file_id", "cannot stand beside 'image_url'; send one of them")
            return {"type": kind, **{key: given for key, given in part.items() if given is not None}}
        case _:
            raise UnsupportedFeature(
                "Files are not read by this server yet: send their text as 'input_text' and their pictures as "
                "'input_image'.",
                param=f"{at}.type",
            )


def _content(value: Any, at: str, role: Role, owner: str) -> list[Item]:
    if isinstance(value, str):
        value = [{"type": "input_text", "text": value}]
    if not isinstance(value, list):
        raise wrong_type(at, "a string or an array of parts", value)
    return [_part(part, f"{at}[{i}]", role, owner) for i, part in enumerate(value)]


_CONTENT: Schema = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "anyOf": [
                    tagged(TextPart, "input_text", "output_text"),
                    tagged(RefusalPart, "refusal"),
                    tagged(PicturePart, "input_image"),
                ]
            },
        },
    ]
}
_STATUS = one_of("in_progress", "completed", "incomplete")


class ItemType(msgspec.Struct, frozen=True, kw_only=True):
    type: Annotated[str | None, string(min_length=1)] = None
    id: Annotated[str | None, string(min_length=1, max_length=256)] = None


class MessageItem(msgspec.Struct, frozen=True, kw_only=True):
    role: Annotated[str, one_of(*_ROLES)]
    content: Annotated[Any, later(_CONTENT)]
    status: Annotated[str, _STATUS] = "completed"
    phase: Annotated[str | None, one_of("commentary", "final_answer")] = None


class FunctionCallItem(msgspec.Struct, frozen=True, kw_only=True):
    call_id: Annotated[str, string(min_length=1)]
    name: Annotated[str, string(min_length=1)]
    arguments: Annotated[str, string()]
    status: Annotated[str, _STATUS] = "completed"


class FunctionOutputItem(msgspec.Struct, frozen=True, kw_only=True):
    call_id: Annotated[str, string(min_length=1)]
    output: Annotated[Any, later(_CONTENT)]
    status: Annotated[str, _STATUS] = "completed"


def _read_message(value: Any, at: str, item_id: str | None) -> Item:
    body = read(MessageItem, value, at)
    owner = f"a message of the role {body.role!r}"
    item: Item = {"type": "message", "id": item_id or new_id("msg_"), "status": body.status, "role": body.role}
    if body.phase is not None:
        item["phase"] = body.phase
    return {**item, "content": _content(body.content, f"{at}.content", _ROLES[body.role], owner)}


def _read_call(value: Any, at: str, item_id: str | None) -> Item:
    body = read(FunctionCallItem, value, at)
    return {"type": "function_call", "id": item_id or new_id("fc_"), **msgspec.structs.asdict(body)}


def _read_output(value: Any, at: str, item_id: str | None) -> Item:
    body = read(FunctionOutputItem, value, at)
    item: Item = {"type": "function_call_output", "id": item_id or new_id("fco_"), "status": body.status}
    if isinstance(body.output, str):
        return {**item, "call_id": body.call_id, "output": body.output}
    output = _content(body.output, f"{at}.output", "tool", "a function's output")
    return {**item, "call_id": body.call_id, "output": output}


class TextOf(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a reasoning item; which kind it is does not matter here."""

    text: Annotated[str, string()]


@described(TextOf)
def _text(value: Any, at: str) -> str:
    return read(TextOf, value, at).text


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True):
    summary: Annotated[tuple[str, ...], array(_text)] = ()
    content: Annotated[tuple[str, ...], array(_text)] = ()


def _read_reasoning(value: Any, at: str, item_id: str | None) -> Item:
    body = read(ReasoningItem, value, at)
    return {
        "type": "reasoning",
        "id": item_id or new_id("rs_"),
        "summary": [{"type": "summary_text", "text": text} for text in body.summary],
        "content": [{"type": "reasoning_text", "text": text} for text in body.content],
    }


class CompactionItem(msgspec.Struct, frozen=True, kw_only=True):
    encrypted_content: Annotated[str, string(min_length=1)]


def _read_compaction(value: Any, at: str, item_id: str | None) -> Item:
    sealed = read(CompactionItem, value, at).encrypted_content
    try:
        unseal(sealed)
    except ValueError:
        raise invalid(f"{at}.encrypted_content", "is not what this server's /v1/responses/compact has given") from None
    return {"type": "compaction", "id": item_id or new_id("cmp_"), "encrypted_content": sealed}


def seal(summary: str) -> str:
    """A summary as a `compaction` item carries it. The API calls that encrypted, for whoever sends one need not
    understand it. Ours is base64 and no secret: it was made of what the client sent, for that client."""
    return _SEAL + base64.urlsafe_b64encode(summary.encode()).decode()


def unseal(sealed: str) -> str:
    """Raises `ValueError` for what `seal` did not make."""
    if not sealed.startswith(_SEAL):
        raise ValueError(sealed[:16])
    return base64.b64decode(sealed.removeprefix(_SEAL), altchars=b"-_", validate=True).decode()


def _read_reference(value: Any, at: str, item_id: str | None) -> Item:
    if item_id is None:
        raise missing(f"{at}.id")
    return {"type": "item_reference", "id": item_id}


ITEM: Schema = {
    "anyOf": [
        {"allOf": [MessageItem, {"properties": {"type": {"enum": ["message", None]}}}]},
        tagged(FunctionCallItem, "function_call"),
        tagged(FunctionOutputItem, "function_call_output"),
        tagged(ReasoningItem, "reasoning"),
        tagged(CompactionItem, "compaction"),
        {"type": "object", "properties": {"type": {"enum": ["item_reference", None]}}, "required": ["id"]},
    ]
}
"""What a request's `input` is a list of. Each may have an `id`."""
_READERS: Mapping[str, Callable[[Any, str, str | None], Item]] = {
    "message": _read_message,
    "function_call": _read_call,
    "function_call_output": _read_output,
    "reasoning": _read_reasoning,
    "compaction": _read_compaction,
    "item_reference": _read_reference,
}


def _read_item(value: Any, at: str) -> Item:
    head = read(ItemType, value, at)
    kind = head.type or ("item_reference" if "role" not in value and head.id is not None else "message")
    if kind not in _READERS:
        raise UnsupportedFeature(
            f"Items of the type {kind[:64]!r} belong to tools that this server does not run; it takes "
            f"{', '.join(_ITEMS)}.",
            param=f"{at}.type",
        )
    return _READERS[kind](value, at, head.id)


def read_items(value: str | list[Any] | None, limits: HttpLimits, *, before: int = 0) -> list[Placed]:
    """A request's `input`, to a conversation that has so many items before.

    Raises `InvalidRequest` or `UnsupportedFeature` for the first thing at fault.
    """
    if value is None:
        return []
    count = 1 if isinstance(value, str) else len(value)
    if before + count > limits.max_messages:
        more = f", with {before} more that came before" if before else ""
        raise invalid("input", f"must have at most {limits.max_messages} items, and has {count}{more}")
    if isinstance(value, str):
        return [Placed(_read_item({"role": "user", "content": value}, "input"), "input")]
    bodies = [v.get("content", v.get("output")) for v in value if isinstance(v, dict)]
    if (parts := sum(len(body) for body in bodies if isinstance(body, list))) > limits.max_parts:
        raise invalid("input", f"must have at most {limits.max_parts} content parts together, and has {parts}")
    return [Placed(_read_item(v, f"input[{i}]"), f"input[{i}]") for i, v in enumerate(value)]


# --- to messages -----------------------------------------------------------------------------------------------------


def to_messages(
    items: Sequence[Placed], instructions: str | None, defaults: PictureDefaults
) -> tuple[Message[ImageRef], ...]:
    """Raises `InvalidRequest` for an output whose call is not there, and for bounds of a picture that contradict."""
    conversation = _Conversation(defaults)
    if instructions is not None:
        conversation.messages.append(Message("system", (Text(instructions),)))
    for placed in items:
        conversation.add(placed)
    conversation.show_pictures()
    return tuple(conversation.messages)


@dataclass(slots=True)
class _Conversation:
    defaults: PictureDefaults
    messages: list[Message[ImageRef]] = field(default_factory=list)
    calls: set[str] = field(default_factory=set)
    pictures: list[Text | ImageRef] = field(default_factory=list)
    """Of outputs, until the outputs are over."""

    def add(self, placed: Placed) -> None:
        item, at = placed.item, placed.at
        if item["type"] != "function_call_output":
            self.show_pictures()
        match item["type"]:
            case "message":
                self._say(_ROLES[item["role"]], self._to_content(item["content"], f"{at}.content"))
            case "function_call":
                self._call(ToolCall(item["call_id"], item["name"], item["arguments"]))
            case "function_call_output":
                self._return(item, at)
            case "compaction":
                self._say("assistant", (Text(f"{_REMEMBERED}{unseal(item['encrypted_content'])}"),))

    def show_pictures(self) -> None:
        if self.pictures:
            self.messages.append(Message("user", tuple(self.pictures)))
            self.pictures.clear()

    def _say(self, role: Role, content: tuple[Text | ImageRef, ...]) -> None:
        last = self.messages[-1] if self.messages else None
        if role == "assistant" and last is not None and last.role == "assistant" and last.tool_calls:
            # What it says beside its calls belongs to the same message, or outputs would not follow their calls.
            self.messages[-1] = replace(last, content=last.content + content)
        else:
            self.messages.append(Message(role, content))

    def _call(self, call: ToolCall) -> None:
        self.calls.add(call.id)
        if self.messages and (last := self.messages[-1]).role == "assistant":
            self.messages[-1] = replace(last, tool_calls=(*last.tool_calls, call))
        else:
            self.messages.append(Message("assistant", (), (call,)))

    def _return(self, item: Item, at: str) -> None:
        call_id, output = item["call_id"], item["output"]
        if call_id not in self.calls:
            raise InvalidRequest(
                f"No tool call found for function call output with call_id {call_id[:64]!r}: it must stand before its "
                "output, in 'input' or in the conversation of 'previous_response_id'.",
                param=f"{at}.call_id",
            )
        parts = (Text(output),) if isinstance(output, str) else self._to_content(output, f"{at}.output")
        texts = tuple(part for part in parts if isinstance(part, Text))
        if len(texts) < len(parts):
            seen = [part for part in parts if not isinstance(part, Text)]
            self.pictures += [Text(f"Pictures in the output of {call_id}:"), *seen]
        self.messages.append(Message("tool", texts or (Text(""),), tool_call_id=call_id))

    def _to_content(self, parts: Sequence[Item], at: str) -> tuple[Text | ImageRef, ...]:
        return tuple(self._to_part(part, f"{at}[{i}]") for i, part in enumerate(parts))

    def _to_part(self, part: Item, at: str) -> Text | ImageRef:
        if part["type"] != "input_image":
            return Text(part["refusal"] if part["type"] == "refusal" else part["text"])
        most, least = part.get("max_pixels") or self.defaults.max_pixels, part.get("min_pixels")
        if most is not None and (least or self.defaults.min_pixels or 0) > most:
            raise InvalidRequest(
                f"Invalid 'min_pixels' for the picture at '{at}': it must not be above 'max_pixels'.",
                param=f"{at}.min_pixels" if least else "min_pixels",
            )
        source, place = part.get("image_url", ""), f"{at}.image_url"
        if (file_id := part.get("file_id")) is not None:
            source, place = FileId(file_id), f"{at}.file_id"
        least = least or self.defaults.min_pixels
        return ImageRef(source, place, part["detail"], most, least, part.get("uuid"))
