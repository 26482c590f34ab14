"""A line of a batch, answered by another server: what `sightline worker --server URL` does.

The server sees a client with an admin key, which asks by the rights and limits of the key that the batch came with. It
may not have the tenant's files, so pictures that the line names by a file's id are put into it here.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

import httpcore2 as http
import msgspec

from sightline.api import errors
from sightline.api.entrance import ON_BEHALF
from sightline.api.inside import to_answer
from sightline.client.transport import CONNECT_S, NETWORK_ERRORS
from sightline.client.wire import to_headers
from sightline.errors import ImageError, InvalidRequest
from sightline.jobs import Lease
from sightline.jobs.runner import Answer
from sightline.routing import BACKGROUND

log = logging.getLogger(__name__)

ReadPicture = Callable[[str, str, int], Awaitable[bytes]]
"""From a file's id, its tenant and how many bytes are taken, to the bytes. Raises `ImageError`."""

_PICTURES: Final = frozenset({"image_url", "image", "input_image", "file"})
_WITH_PRIORITY: Final = frozenset({"/v1/chat/completions", "/v1/responses"})


class Elsewhere:
    """Life: made -> `execute`, from any task of one event loop -> `close`."""

    def __init__(
        self,
        server: str,
        api_key: str | None,
        read_picture: ReadPicture,
        *,
        at_once: int,
        timeout_s: float,
        picture_bytes: int,
    ) -> None:
        """`server`: `http://HOST:PORT`. Raises `InvalidRequest` for what is no address."""
        parts = urlsplit(server)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidRequest(
                f"{server!r} is no address of a server; it looks like http://127.0.0.1:8000.", param="server"
            )
        self._server = server.rstrip("/").removesuffix("/v1")
        self._headers: dict[bytes | str, bytes | str] = {
            **to_headers(api_key),
            "Host": parts.netloc.rpartition("@")[2],
            "Content-Type": "application/json",
        }
        self._timeouts = {"connect": CONNECT_S, "read": timeout_s, "write": timeout_s, "pool": timeout_s}
        self._read_picture = read_picture
        self._picture_bytes = picture_bytes
        self._pool = http.AsyncConnectionPool(max_connections=at_once, keepalive_expiry=4.0)

    async def execute(self, lease: Lease) -> Answer:
        """What the server answers. Cancelling it ends the work there."""
        try:
            body = await self._to_body(lease)
        except ImageError as error:
            told = errors.to_response(error, lease.item.id)
            return Answer(told.status_code, lease.item.id, bytes(told.body))
        headers = {**self._headers, "Content-Length": str(len(body))}
        if lease.key_id:
            headers[ON_BEHALF] = lease.key_id
        request = http.Request(
            "POST", self._server + lease.endpoint, headers=headers, content=body, extensions={"timeout": self._timeouts}
        )
        try:
            response = await self._pool.handle_async_request(request)
            try:
                reply = await response.aread()
            finally:
                await response.aclose()
        except NETWORK_ERRORS as error:
            return _no_answer(error)
        sent = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        answer = to_answer(response.status, sent, reply)
        if response.status == 401 or (response.status == 403 and ON_BEHALF in reply):
            log.error("%s refuses this worker's key; SIGHTLINE_API_KEY must be an admin key of its", self._server)
            return replace(answer, retryable=True, began=False)  # no line is at fault: they wait for the operator
        return answer

    async def close(self) -> None:
        await self._pool.aclose()

    async def _to_body(self, lease: Lease) -> bytes:
        body = msgspec.json.decode(lease.item.body)
        if lease.endpoint in _WITH_PRIORITY:
            body["priority"] = BACKGROUND
        for part, file_id in list(_named(body)):
            content = await self._read_picture(file_id, lease.tenant, self._picture_bytes)
            _put(part, await asyncio.to_thread(_to_url, content))
        return await asyncio.to_thread(msgspec.json.encode, body)


def _named(value: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Every part of a body that names a picture by its file's id, and the id."""
    if isinstance(value, list):
        for each in value:
            yield from _named(each)
    elif isinstance(value, dict):
        if value.get("type") in _PICTURES:
            for place in (value, value.get("image_url"), value.get("file")):
                if isinstance(place, dict) and isinstance(file_id := place.get("file_id"), str):
                    yield value, file_id
                    return
        for each in value.values():
            yield from _named(each)


def _put(part: dict[str, Any], url: str) -> None:
    """The picture itself in the place of its file's id, its detail as it was."""
    if part["type"] in ("file", "image"):
        part["type"] = "image_url"
    part.pop("file_id", None)
    part.pop("file", None)
    given = part.get("image_url")
    if isinstance(given, dict):
        given.pop("file_id", None)
        given["url"] = url
    else:
        part["image_url"] = url


def _to_url(content: bytes) -> str:
    return f"data:;base64,{base64.b64encode(content).decode()}"


def _no_answer(error: Exception) -> Answer:
    told = {"error": {"message": "The server that is to answer cannot be reached.", "type": "server_error"}}
    away = isinstance(error, http.ConnectError | http.ConnectTimeout | http.PoolTimeout)
    return Answer(503, "", msgspec.json.encode(told), retryable=True, began=not away)
