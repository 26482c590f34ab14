"""What is answered where there is no request to be answered: bytes that are not HTTP, or too many of something."""

from __future__ import annotations

import os
from dataclasses import dataclass
from http import HTTPStatus

from starlette.types import Send

from sightline.api.errors import INVALID_REQUEST, SERVER_ERROR, ErrorBody, ErrorObject
from sightline.api.wire import encode


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: str
    """One of a closed set, for the metrics."""
    status: int
    message: str
    """For the client: what is wrong, and what to do. Never quotes what was sent."""
    retry_after_s: int | None = None

    def to_bytes(self) -> bytes:
        """A whole answer, after which the connection is closed."""
        body = self._to_body()
        lines = [b"HTTP/1.1 %d %s" % (self.status, HTTPStatus(self.status).phrase.encode())]
        lines += [b"%s: %s" % header for header in [*self._to_headers(body), (b"connection", b"close")]]
        return b"\r\n".join([*lines, b"", body])

    async def send(self, send: Send) -> None:
        """As an application's answer."""
        body = self._to_body()
        await send({"type": "http.response.start", "status": self.status, "headers": self._to_headers(body)})
        await send({"type": "http.response.body", "body": body})

    def _to_body(self) -> bytes:
        """In OpenAI's shape: no path was read that would say another."""
        kind = "rate_limit_error" if self.status == 429 else INVALID_REQUEST if self.status < 500 else SERVER_ERROR
        return encode(ErrorBody(ErrorObject(self.message, kind, None, None)))

    def _to_headers(self, body: bytes) -> list[tuple[bytes, bytes]]:
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", b"req_" + os.urandom(12).hex().encode()),
        ]
        if self.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % self.retry_after_s))
        return headers


MALFORMED = Refusal("malformed", 400, "The bytes on this connection are not a well-formed HTTP/1.1 request.")
TOO_MANY = Refusal("too_many", 503, "The server has as many connections as it takes. Try again later.", 1)
TOO_MANY_OF_ONE = Refusal(
    "too_many_of_one",
    429,
    "There are too many connections from your address. Keep connections open and use them again.",
    1,
)
