"""The list of models as Anthropic's clients know it: `GET /v1/models[/{id}]` of a request with `anthropic-version`, for
OpenAI's has the same path.

Source: the Python SDK `anthropic` 2.12, `ModelInfo`, `ModelListParams`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sightline.api import access
from sightline.api.fields import invalid
from sightline.api.messages.reply import to_error_response
from sightline.api.wire import json_response
from sightline.errors import ModelNotFound, RequestError
from sightline.models import ModelStatus

VERSION = "anthropic-version"
"""The header by which its clients are known."""
MAX_PAGE = 1000
_PAGE = 20


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "model"
    id: str
    display_name: str
    created_at: str
    """When it was configured."""
    lifecycle: str = "active"
    max_input_tokens: int | None
    """Of prompt and answer together; null until the model is loaded."""
    max_tokens: int | None


class ModelPage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[ModelInfo]
    has_more: bool
    first_id: str | None
    last_id: str | None


def to_info(status: ModelStatus) -> ModelInfo:
    context = None if status.info is None else status.info.context_length
    return ModelInfo(
        id=status.name,
        display_name=status.name,
        created_at=datetime.fromtimestamp(status.created, UTC).isoformat().replace("+00:00", "Z"),
        max_input_tokens=context,
        max_tokens=context,
    )


def to_page(served: Sequence[ModelStatus], *, limit: int, after: str | None, before: str | None) -> ModelPage:
    """At most `limit` models: the first after `after`, or the last before `before`.

    Raises `InvalidRequest` for a name that is not in the list.
    """
    names = [status.name for status in served]
    for place, name in (("after_id", after), ("before_id", before)):
        if name is not None and name not in names:
            raise invalid(place, "must be the id of a model that is served")
    start = 0 if after is None else names.index(after) + 1
    end = len(names) if before is None else names.index(before)
    if before is None or after is not None:
        shown = range(start, min(end, start + limit))
        has_more = shown.stop < end
    else:
        shown = range(max(start, end - limit), end)
        has_more = shown.start > start
    data = [to_info(served[index]) for index in shown]
    return ModelPage(
        data=data,
        has_more=has_more,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
    )


def answer(request: Request, served: Sequence[ModelStatus], name: str | None = None) -> Response:
    """The page that is asked for, or the model of that name; an error in Anthropic's shape."""
    record = access.of(request.scope)
    headers = {"request-id": record.request_id}
    try:
        if name is not None:
            return json_response(to_info(_find(served, name)), headers=headers)
        page = to_page(
            served,
            limit=_limit(request.query_params.get("limit")),
            after=request.query_params.get("after_id"),
            before=request.query_params.get("before_id"),
        )
        return json_response(page, headers=headers)
    except RequestError as error:
        record.error = error
        return to_error_response(error, record.request_id)


def _find(served: Sequence[ModelStatus], name: str) -> ModelStatus:
    for status in served:
        if status.name == name:
            return status
    raise ModelNotFound(f"The model {name[:128]!r} does not exist. GET /v1/models lists what is served.")


def _limit(text: str | None) -> int:
    if text is None:
        return _PAGE
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= MAX_PAGE):
        raise invalid("limit", f"must be between 1 and {MAX_PAGE}")
    return int(text)
