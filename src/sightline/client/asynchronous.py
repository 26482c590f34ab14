"""The client for programs with an event loop: the same calls, awaited. Pictures are read and encoded in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

import httpcore2 as http

from sightline.client.pictures import Picture
from sightline.client.transport import NETWORK_ERRORS, POOL, Calls, broken_off, headers_of, unreachable
from sightline.client.wire import (
    Answer,
    ApiError,
    ConnectionFailed,
    StreamBroken,
    Streamed,
    choose_model,
    retry_in_s,
    to_answer,
    to_body,
    to_error,
    to_messages,
    to_object,
)


class Transport(Protocol):
    """What carries a request to the server and its response back: `httpcore2`'s pool of connections, or the like."""

    async def handle_async_request(self, request: http.Request) -> http.Response: ...

    async def aclose(self) -> None: ...


class AsyncClient:
    """Used from one event loop. A context manager; `close` gives its connections back."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout_s: float = 600.0,
        max_retries: int = 2,
        transport: Transport | None = None,
    ) -> None:
        """`base_url` and `api_key` default to the environment's `SIGHTLINE_URL` and `SIGHTLINE_API_KEY`, the address
        to where `sightline serve` listens. `model` to the server's first that can see. `timeout_s`: without a sign of
        the server. `max_retries`: of a call that was not answered, or told to come again. `transport`: in place of
        connections, for a server in this very process."""
        self._calls = Calls(base_url, api_key, timeout_s)
        self.base_url = self._calls.base_url
        self._model = model
        self._max_retries = max_retries
        self._pool = transport or http.AsyncConnectionPool(**POOL)

    async def ask(
        self,
        question: str,
        *pictures: Picture,
        model: str | None = None,
        system: str | None = None,
        detail: str | None = None,
        after: Answer | None = None,
        **fields: Any,
    ) -> Answer:
        """The answer to a question, about pictures that the model sees in this order, before the question.

        `detail`: `low`, `high`, `original` or `auto`, of all pictures. `after`: an earlier answer, whose conversation
        goes on, its pictures included. `fields`: any other of a chat completion, such as `max_tokens=20`,
        `temperature=0`, `response_format={...}`.

        Raises `ApiError`, `ConnectionFailed`; for pictures `OSError`, `TypeError` or `ValueError`.
        """
        asked = await asyncio.to_thread(to_messages, question, pictures, system=system, detail=detail, after=after)
        body = to_body(model or (after.model if after else await self.default_model()), asked, fields, stream=False)
        response = await self._call("POST", "/chat/completions", body)
        return to_answer(await _json(response), headers_of(response), asked)

    async def stream(
        self,
        question: str,
        *pictures: Picture,
        model: str | None = None,
        system: str | None = None,
        detail: str | None = None,
        after: Answer | None = None,
        **fields: Any,
    ) -> AsyncAnswerStream:
        """Like `ask`, with the answer as it comes: iterate for pieces of text, then `await .answer()`.

        Raises what `ask` raises, and `StreamBroken` while it is read.
        """
        asked = await asyncio.to_thread(to_messages, question, pictures, system=system, detail=detail, after=after)
        body = to_body(model or (after.model if after else await self.default_model()), asked, fields, stream=True)
        return await self.send(body)

    async def send(self, body: Mapping[str, Any]) -> AsyncAnswerStream:
        """The answer to a chat completion's body that has `"stream": true`, for programs that write it themselves.
        Raises `ApiError`, `ConnectionFailed`."""
        return AsyncAnswerStream(await self._call("POST", "/chat/completions", body), body["messages"])

    async def models(self) -> list[str]:
        """What the server serves, by name. Raises `ApiError`, `ConnectionFailed`."""
        return [model["id"] for model in (await self.list_models())["data"]]

    async def list_models(self) -> Mapping[str, Any]:
        """`GET /v1/models` as the server tells it: beside the names, what each can do and whether it is ready."""
        return await _json(await self._call("GET", "/models", None))

    async def default_model(self) -> str:
        """What is asked when a call names no model."""
        if self._model is None:
            self._model = choose_model(await self.list_models())
        return self._model

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None) -> http.Response:
        """The response, its body not yet read. Tries again as `retry_in_s` says."""
        request = self._calls.to_request(method, path, body)
        attempt = 0
        while True:
            try:
                return await self._try(request)
            except (ConnectionFailed, ApiError) as error:
                if (wait_s := retry_in_s(error, attempt, self._max_retries)) is None:
                    raise
                await asyncio.sleep(wait_s)
                attempt += 1

    async def _try(self, request: http.Request) -> http.Response:
        try:
            response = await self._pool.handle_async_request(request)
        except NETWORK_ERRORS as error:
            raise unreachable(self._calls.base_url, error) from error
        if response.status >= 300:
            raise to_error(response.status, headers_of(response), await _whole(response))
        return response

    async def close(self) -> None:
        await self._pool.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncAnswerStream:
    """Pieces of text; then `answer`, the whole. Leaving it early tells the server that nobody reads any more."""

    def __init__(self, response: http.Response, asked: Sequence[Mapping[str, Any]]) -> None:
        self._response = response
        self._streamed = Streamed(headers_of(response), asked)
        self._answer: Answer | None = None
        self._pieces = self._read()
        self.request_id: str | None = headers_of(response).get("x-request-id")

    def __aiter__(self) -> AsyncIterator[str]:
        return self._pieces

    async def _read(self) -> AsyncGenerator[str, None]:
        try:
            async for piece in self._response.aiter_stream():
                for text in self._streamed.feed(piece):
                    yield text
        except NETWORK_ERRORS as error:
            raise StreamBroken("The connection broke in the middle of the answer.") from error
        finally:
            await self._response.aclose()
        self._answer = self._streamed.end()

    async def answer(self) -> Answer:
        """Reads what has not been read. Raises `StreamBroken`."""
        async for _ in self._pieces:
            pass
        if self._answer is None:
            raise StreamBroken("The stream was left before its end.")
        return self._answer

    async def close(self) -> None:
        await self._pieces.aclose()
        await self._response.aclose()

    async def __aenter__(self) -> AsyncAnswerStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _whole(response: http.Response) -> bytes:
    try:
        return bytes(await response.aread())
    except NETWORK_ERRORS as error:
        raise broken_off(error) from error
    finally:
        await response.aclose()


async def _json(response: http.Response) -> dict[str, Any]:
    return to_object(await _whole(response))
