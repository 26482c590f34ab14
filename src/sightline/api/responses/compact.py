"""Compaction: a long conversation becomes what its users said, and a summary by the model. Pure.

to_chat_request   a body and its conversation -> the request for a summary
to_compacted      the summary -> the items that stand for the conversation, pictures and all
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from sightline.api.collected import Collected
from sightline.api.content import PictureDefaults
from sightline.api.exchange import new_id
from sightline.api.extension import Extension, to_extension
from sightline.api.fields import string
from sightline.api.responses.answer import to_usage_reply
from sightline.api.responses.items import Item, Placed, seal, to_messages
from sightline.api.responses.objects import UsageReply
from sightline.api.responses.schema import input_rule
from sightline.types import ChatRequest, Message, SamplingParams, Text

_BRIEF = (
    "Summarise this conversation for somebody who is to go on with it: what was asked, what was found out, what was "
    "agreed and what is still open. Be brief, and leave out nothing that matters."
)


class CompactBody(msgspec.Struct, frozen=True, kw_only=True):
    model: Annotated[str, string(min_length=1)]
    input: Annotated[Any, input_rule] = None
    instructions: Annotated[str | None, string()] = None
    """For the summary alone: they are not part of it."""
    previous_response_id: Annotated[str | None, string(min_length=1)] = None


class Compacted(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "response.compaction"
    created_at: int
    output: list[dict[str, Any]]
    """Every message of a user as it was, then one item of the type `compaction`: the next request's `input`."""
    usage: UsageReply
    sightline: Extension


def to_chat_request(body: CompactBody, conversation: Sequence[Placed], request_id: str, tenant: str) -> ChatRequest:
    """Raises `InvalidRequest`."""
    messages = to_messages(conversation, body.instructions, PictureDefaults())
    brief = Message("user", (Text(_BRIEF),))
    return ChatRequest(request_id, body.model, (*messages, brief), SamplingParams(temperature=0.0), tenant=tenant)


def to_compacted(response_id: str, created_at: int, conversation: Sequence[Placed], answer: Collected) -> Compacted:
    said: list[Item] = [placed.item for placed in conversation if placed.item.get("role") == "user"]
    summary: Item = {
        "type": "compaction",
        "id": new_id("cmp_"),
        "encrypted_content": seal(answer.choices[0].text),
    }
    return Compacted(
        id=response_id,
        created_at=created_at,
        output=[*said, summary],
        usage=to_usage_reply(answer.usage),
        sightline=to_extension(answer.prepared, answer.finishes),
    )
