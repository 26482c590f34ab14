"""Lists in pages, as OpenAI's API has them: `limit`, `after`, `order` in the query."""

from __future__ import annotations

from starlette.requests import Request

from sightline.api.fields import integer, invalid, one_of


def read_limit(request: Request, *, default: int, most: int) -> int:
    """Raises `InvalidRequest`."""
    given = request.query_params.get("limit")
    if given is None:
        return default
    if not (given.isascii() and given.isdecimal() and len(given) <= 10):
        raise invalid("limit", "must be a whole number")
    return integer(1, most)(int(given), "limit")


def read_ascending(request: Request) -> bool:
    """Whether the oldest comes first. Raises `InvalidRequest`."""
    return bool(one_of("asc", "desc")(request.query_params.get("order", "desc"), "order") == "asc")
