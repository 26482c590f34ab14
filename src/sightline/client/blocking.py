"""The client for programs without an event loop."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

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


class Client:
    """Thread-safe. A context manager; `close` gives its connections back."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout_s: float = 600.0,
        max_retries: int = 2,
    ) -> None:
        """`base_url` and `api_key` default to the environment's `SIGHTLINE_URL` and `SIGHTLINE_API_KEY`, the address
        to where `sightline serve` listens. `model` to the server's first that can see. `timeout_s`: without a sign of
        the server. `max_retries`: of a call that was not answered, or told to come again."""
        self._calls = Calls(base_url, api_key, timeout_s)
        self._model = model
        self._max_retries = max_retries
        self._pool = http.ConnectionPool(**POOL)

    def ask(
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
        asked = to_messages(question, pictures, system=system, detail=detail, after=after)
        body = to_body(model or (after.model if after else self.default_model()), asked, fields, stream=False)
        response = self._call("POST", "/chat/completions", body)
        return to_answer(_json(response), headers_of(response), asked)

    def stream(
        self,
        question: str,
        *pictures: Picture,
        model: str | None = None,
        system: str | None = None,
        detail: str | None = None,
        after: Answer | None = None,
        **fields: Any,
    ) -> AnswerStream:
        """Like `ask`, with the answer as it comes: iterate for pieces of text, then read `.answer`.

        Raises what `ask` raises, and `StreamBroken` while it is read.
        """
        asked = to_messages(question, pictures, system=system, detail=detail, after=after)
        body = to_body(model or (after.model if after else self.default_model()), asked, fields, stream=True)
        return AnswerStream(self._call("POST", "/chat/completions", body), asked)

    def models(self) -> list[str]:
        """What the server serves, by name. Raises `ApiError`, `ConnectionFailed`."""
        return [model["id"] for model in self._list_models()["data"]]

    def batch(self, batch_id: str) -> Mapping[str, Any]:
        """How far a batch of `/v1/batches` is, as OpenAI's API tells it. Raises as `ask`."""
        return _json(self._call("GET", f"/batches/{quote(batch_id, safe='')}", None))

    def default_model(self) -> str:
        """What is asked when a call names no model."""
        if self._model is None:
            self._model = choose_model(self._list_models())
        return self._model

    def _list_models(self) -> Mapping[str, Any]:
        return _json(self._call("GET", "/models", None))

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None) -> http.Response:
        """The response, its body not yet read. Tries again as `retry_in_s` says."""
        request = self._calls.to_request(method, path, body)
        attempt = 0
        while True:
            try:
                return self._try(request)
            except (ConnectionFailed, ApiError) as error:
                if (wait_s := retry_in_s(error, attempt, self._max_retries)) is None:
                    raise
                time.sleep(wait_s)
                attempt += 1

    def _try(self, request: http.Request) -> http.Response:
        try:
            response = self._pool.handle_request(request)
        except NETWORK_ERRORS as error:
            raise unreachable(self._calls.base_url, error) from error
        if response.status >= 300:
            raise to_error(response.status, headers_of(response), _whole(response))
        return response

    def close(self) -> None:
        self._pool.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AnswerStream:
    """Pieces of text; then `answer`, the whole. Leaving it early tells the server that nobody reads any more."""

    def __init__(self, response: http.Response, asked: Sequence[Mapping[str, Any]]) -> None:
        self._response = response
        self._streamed = Streamed(headers_of(response), asked)
        self._answer: Answer | None = None
        self._pieces = self._read()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def _read(self) -> Generator[str, None, None]:
        try:
            for piece in self._response.iter_stream():
                yield from self._streamed.feed(piece)
        except NETWORK_ERRORS as error:
            raise StreamBroken("The connection broke in the middle of the answer.") from error
        finally:
            self._response.close()
        self._answer = self._streamed.end()

    @property
    def answer(self) -> Answer:
        """Reads what has not been read. Raises `StreamBroken`."""
        for _ in self._pieces:
            pass
        if self._answer is None:
            raise StreamBroken("The stream was left before its end.")
        return self._answer

    def close(self) -> None:
        self._pieces.close()
        self._response.close()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _whole(response: http.Response) -> bytes:
    try:
        return bytes(response.read())
    except NETWORK_ERRORS as error:
        raise broken_off(error) from error
    finally:
        response.close()


def _json(response: http.Response) -> dict[str, Any]:
    return to_object(_whole(response))
