"""What both clients say to their connection pools, and how they tell what went wrong there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, TypedDict
from urllib.parse import urlsplit

import httpcore2 as http

from sightline.client.wire import ClientError, ConnectionFailed, Headers, to_headers
from sightline.config import DEFAULT_URL, environment

CONNECT_S = 5.0

NETWORK_ERRORS: Final = (
    http.TimeoutException,
    http.NetworkError,
    http.ProtocolError,
    http.UnsupportedProtocol,
    OSError,
)


class _Pool(TypedDict):
    max_connections: int
    keepalive_expiry: float


POOL: Final[_Pool] = {
    "max_connections": 100,
    "keepalive_expiry": 4.0,  # servers close idle connections after 5 s
}


class Calls:
    """Where to, with which headers and time limits."""

    def __init__(self, base_url: str | None, api_key: str | None, timeout_s: float) -> None:
        """Raises `ClientError` for an address that is none."""
        self.base_url = (base_url or environment("URL") or DEFAULT_URL).rstrip("/")
        parts = urlsplit(self.base_url)
        if parts.path == "":  # as people write an address; the API is below /v1
            self.base_url += "/v1"
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ClientError(f"{self.base_url!r} is no address of a server; it looks like {DEFAULT_URL}.")
        self._headers: dict[bytes | str, bytes | str] = {
            **to_headers(api_key or environment("API_KEY")),
            "Host": parts.netloc.rpartition("@")[2],
        }
        self._timeouts = {"connect": CONNECT_S, "read": timeout_s, "write": timeout_s, "pool": timeout_s}

    def to_request(self, method: str, path: str, body: Mapping[str, Any] | None) -> http.Request:
        content = None if body is None else json.dumps(body).encode()
        headers: dict[bytes | str, bytes | str] = dict(self._headers)
        if content is not None:
            headers |= {"Content-Type": "application/json", "Content-Length": str(len(content))}
        extensions = {"timeout": self._timeouts}
        return http.Request(method, self.base_url + path, headers=headers, content=content, extensions=extensions)


def headers_of(response: http.Response) -> Headers:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}


def unreachable(base_url: str, error: Exception) -> ConnectionFailed:
    if isinstance(error, http.ConnectError | http.ConnectTimeout):
        return ConnectionFailed(f"No server answers at {base_url}. Is 'sightline serve' running there?")
    return broken_off(error)


def broken_off(error: Exception) -> ConnectionFailed:
    if isinstance(error, http.TimeoutException):
        return ConnectionFailed("The server did not answer in time; timeout_s says how long is waited.")
    return ConnectionFailed("The connection broke before the server had answered.")
