"""Messages of a chat: roles, content parts, pictures. Pure; no picture is fetched or decoded here.

| role | parts |
|---|---|
| developer, system, tool, function | text |
| user | text, image_url, image, file (a picture by its id), input_audio (not yet) |
| assistant | text, refusal; nothing at all beside tool calls |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from sightline.api.fields import (
    Schema,
    array,
    described,
    integer,
    invalid,
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
from sightline.config import HttpLimits
from sightline.errors import ImageForbidden, InvalidRequest, UnsupportedFeature
from sightline.types import Detail, FileId, ImageRef, Message, Role, Text, ToolCall

Content = tuple[Text | ImageRef, ...]

_ROLES: Mapping[str, Role] = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_PARTS: Mapping[Role, tuple[str, ...]] = {
    "system": ("text",),
    "user": ("text", "image_url", "image", "input_audio", "file"),
    "assistant": ("text", "refusal"),
    "tool": ("text",),
}
_ALL_PARTS = ("text", "image_url", "image", "input_audio", "file", "refusal")
_MAX_PIXELS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class PictureDefaults:
    """What a request says of all its pictures; a part may say otherwise of its own."""

    max_pixels: int | None = None
    min_pixels: int | None = None


def to_messages(
    values: tuple[Any, ...], limits: HttpLimits, defaults: PictureDefaults
) -> tuple[Message[ImageRef], ...]:
    """Raises `InvalidRequest`, `UnsupportedFeature` or `ImageForbidden` for the first thing at fault."""
    if len(values) > limits.max_messages:
        raise invalid("messages", f"must have at most {limits.max_messages} items, and has {len(values)}")
    contents = (v.get("content") for v in values if isinstance(v, dict))
    if (parts := sum(len(c) for c in contents if isinstance(c, list))) > limits.max_parts:
        raise invalid("messages", f"must have at most {limits.max_parts} content parts together, and has {parts}")
    return tuple(_to_message(value, f"messages[{i}]", defaults) for i, value in enumerate(values))


# --- messages --------------------------------------------------------------------------------------------------------


def _contents() -> Schema:
    part = (
        tagged(TextPart, "text"),
        tagged(PicturePart, "image_url", "image"),
        tagged(FilePart, "file"),
        tagged(RefusalPart, "refusal"),
    )
    return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": part}, "minItems": 1}]}


@described(_contents)
def _content(value: Any, at: str) -> Any:
    if not isinstance(value, str | list):
        raise wrong_type(at, "a string or an array of parts", value)
    return value


class FunctionCallBody(msgspec.Struct, frozen=True, kw_only=True):
    name: Annotated[str, string(min_length=1)]
    arguments: Annotated[str, string()]


class ToolCallBody(msgspec.Struct, frozen=True, kw_only=True):
    id: Annotated[str, string(min_length=1)]
    type: Annotated[str, one_of("function")] = "function"
    function: Annotated[FunctionCallBody, struct(FunctionCallBody)]


class MessageBody(msgspec.Struct, frozen=True, kw_only=True):
    role: Annotated[str, one_of(*_ROLES)]
    content: Annotated[Any, _content] = None
    name: Annotated[str | None, string()] = None
    refusal: Annotated[str | None, string()] = None
    tool_calls: Annotated[tuple[ToolCallBody, ...], array(struct(ToolCallBody), max_length=128)] = ()
    tool_call_id: Annotated[str | None, string(min_length=1)] = None
    audio: Annotated[None, refused("an earlier answer's audio is not kept here; send its text.")] = None
    function_call: Annotated[None, refused("use 'tool_calls'.")] = None


def _to_message(value: Any, at: str, defaults: PictureDefaults) -> Message[ImageRef]:
    body = read(MessageBody, value, at)
    role = _ROLES[body.role]
    calls = tuple(ToolCall(c.id, c.function.name, c.function.arguments) for c in body.tool_calls)
    if calls and role != "assistant":
        raise invalid(f"{at}.tool_calls", "can only stand in a message of the role 'assistant'")
    if body.role == "tool" and body.tool_call_id is None:
        raise missing(f"{at}.tool_call_id")
    content: Content = ()
    if body.content is not None:
        content = _to_content(body.content, f"{at}.content", role, body.role, defaults)
    elif not (role == "assistant" and (calls or body.refusal is not None)):
        raise missing(f"{at}.content") if "content" not in value else wrong_type(f"{at}.content", "a value", None)
    if role == "assistant" and body.refusal is not None:
        content = (*content, Text(body.refusal))
    return Message(role, content, calls, body.tool_call_id, body.name)


def _to_content(value: str | list[Any], at: str, role: Role, shown_role: str, defaults: PictureDefaults) -> Content:
    if isinstance(value, str):
        return (Text(value),)
    if not value:
        raise invalid(at, "must have 1 or more items")
    return tuple(_to_part(part, f"{at}[{i}]", role, shown_role, defaults) for i, part in enumerate(value))


# --- parts -----------------------------------------------------------------------------------------------------------


class PartType(msgspec.Struct, frozen=True, kw_only=True):
    type: Annotated[str, one_of(*_ALL_PARTS)]


class TextPart(msgspec.Struct, frozen=True, kw_only=True):
    text: Annotated[str, string()]


class RefusalPart(msgspec.Struct, frozen=True, kw_only=True):
    refusal: Annotated[str, string()]


_NOT_TAKEN = {
    "input_audio": "Models take no sound in a chat here. Send what was said as text, from /v1/audio/transcriptions.",
    "file": "Of files, only pictures are read here, by the 'file_id' of one at /v1/files. Send a picture itself as "
    "'image_url', text as text, and pages as pictures.",
}


class ImageUrl(msgspec.Struct, frozen=True, kw_only=True):
    url: Annotated[str | None, string(min_length=1)] = None
    file_id: Annotated[str | None, string(min_length=1)] = None
    """Of a file at `/v1/files`, in place of `url`."""
    detail: Annotated[Detail, one_of("auto", "low", "high", "original")] = "auto"


@described({"anyOf": [ImageUrl, to_schema(string(min_length=1))]})
def _image_url(value: Any, at: str) -> Any:
    if isinstance(value, str):
        return string(min_length=1)(value, at)
    if not isinstance(value, dict):
        raise wrong_type(at, "an object or a string", value)
    return read(ImageUrl, value, at)


class KeptFile(msgspec.Struct, frozen=True, kw_only=True):
    file_id: Annotated[str, string(min_length=1)]
    """Of a picture at `/v1/files`."""


class FilePart(msgspec.Struct, frozen=True, kw_only=True):
    file: Annotated[KeptFile, struct(KeptFile)]


class PicturePart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of type `image_url` or `image`; `max_pixels`, `min_pixels` and `uuid` are ours."""

    file_id: Annotated[str | None, string(min_length=1)] = None
    """Of a file at `/v1/files`, in place of the picture."""
    image_url: Annotated[ImageUrl | str | None, _image_url] = None
    image: Annotated[str | None, string(min_length=1)] = None
    detail: Annotated[Detail, one_of("auto", "low", "high", "original")] = "auto"
    max_pixels: Annotated[int | None, integer(1, _MAX_PIXELS)] = None
    min_pixels: Annotated[int | None, integer(1, _MAX_PIXELS)] = None
    uuid: Annotated[str | None, string(min_length=1, max_length=256)] = None


def _to_part(value: Any, at: str, role: Role, shown_role: str, defaults: PictureDefaults) -> Text | ImageRef:
    kind = read(PartType, value, at).type
    if kind not in _PARTS[role]:
        raise invalid(f"{at}.type", f"cannot be {kind!r} in a message of the role {shown_role!r}")
    match kind:
        case "text":
            return Text(read(TextPart, value, at).text)
        case "refusal":
            return Text(read(RefusalPart, value, at).refusal)
        case "image_url" | "image":
            return _to_image_ref(read(PicturePart, value, at), kind, at, defaults)
        case "file" if isinstance(value.get("file"), dict) and "file_id" in value["file"]:
            part = PicturePart(file_id=read(FilePart, value, at).file.file_id)
            return _to_image_ref(part, kind, at, defaults)
        case _:
            raise UnsupportedFeature(_NOT_TAKEN[kind], param=f"{at}.type")


def _to_image_ref(part: PicturePart, kind: str, at: str, defaults: PictureDefaults) -> ImageRef:
    source, place, detail = _source(part, kind, at)
    max_pixels, min_pixels = part.max_pixels or defaults.max_pixels, part.min_pixels or defaults.min_pixels
    if max_pixels is not None and min_pixels is not None and min_pixels > max_pixels:
        raise InvalidRequest(
            f"Invalid 'min_pixels' for the picture at '{at}': it must not be above 'max_pixels'.",
            param=f"{at}.min_pixels" if part.min_pixels else "min_pixels",
        )
    return ImageRef(source, place, detail, max_pixels, min_pixels, part.uuid)


def _source(part: PicturePart, kind: str, at: str) -> tuple[str, str, Detail]:
    """The picture, where it stands in the request, and its detail. Raises `InvalidRequest` for none or two."""
    if part.image is not None and part.image_url is not None:
        other = "image" if kind == "image_url" else "image_url"
        raise invalid(f"{at}.{other}", f"cannot stand beside '{kind}'; send one of them")
    place = f"{at}.{kind}"
    given = part.image_url if kind == "image_url" else part.image
    match given:
        case None:
            if part.file_id is None:
                raise missing(place)
            return FileId(part.file_id), f"{at}.file.file_id" if kind == "file" else f"{at}.file_id", part.detail
        case _ if part.file_id is not None:
            raise invalid(f"{at}.file_id", f"cannot stand beside '{kind}'; send one of them")
        case ImageUrl(file_id=str()) if given.url is not None:
            raise invalid(f"{place}.file_id", "cannot stand beside 'url'; send one of them")
        case ImageUrl(file_id=str()):
            return FileId(given.file_id), f"{place}.file_id", given.detail
        case ImageUrl():
            if given.url is None:
                raise missing(f"{place}.url")
            return given.url, f"{place}.url", given.detail
        case str():
            return given if kind == "image_url" else to_url(given, place), place, part.detail


_URL = re.compile(r"(?:data|https?):", re.IGNORECASE)
_PATH = re.compile(r"[./~\\]|[A-Za-z]:|file:", re.IGNORECASE)
_BASE64_JPEG = "/9j/"
"""Base64 of the bytes that every JPEG begins with: the one picture whose base64 looks like a path."""


def to_url(source: str, at: str) -> str:
    """The string of an `image` part, a URL or bare base64, as a URL. Never a path: other servers open those.

    Raises `ImageForbidden` for what looks like a path.
    """
    if _URL.match(source):
        return source
    looks_like_a_path = _PATH.match(source) and not source.startswith(_BASE64_JPEG)
    if looks_like_a_path or "." in source[:256]:
        raise ImageForbidden(
            "A picture is sent as a data: URL or as base64; this server opens no paths for clients.", param=at
        )
    return f"data:;base64,{source}"
