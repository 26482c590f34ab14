"""One task asked: of a model in this process, or of a server. Pictures are read when their turn comes, off the loop."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from sightline.batch.tasks import RowError, Task
from sightline.client import ApiError, AsyncClient, ClientError, ConnectionFailed
from sightline.client.pictures import Picture, to_url
from sightline.config import ModelConfig, Settings
from sightline.errors import SightlineError
from sightline.items import ChoiceEvent
from sightline.service import Service
from sightline.types import (
    ChatRequest,
    Finish,
    ImageRef,
    Message,
    RefusalDelta,
    ResponseFormat,
    SamplingParams,
    Text,
    TextDelta,
)

_LOWEST_PRIORITY = -10
"""On a server, whoever waits for an answer goes first, and has a slot kept free. In this process nobody else does."""


@dataclass(frozen=True, slots=True)
class Question:
    """How every task is asked."""

    system: str | None = None
    max_tokens: int | None = None
    temperature: float = 0.0
    seed: int | None = None
    schema: dict[str, Any] | None = None
    """A JSON schema that every answer is to follow."""
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    text: str
    model: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    image_tokens: int


class Failed(Exception):
    """A task that was not answered."""

    def __init__(self, error: RowError, retryable: bool, retry_after_s: float | None = None) -> None:
        """`retryable`: whether it may be answered later, unchanged."""
        super().__init__(error.message)
        self.error = error
        self.retryable = retryable
        self.retry_after_s = retry_after_s


class Asker(Protocol):
    """Life: made -> `start` -> any number of `ask`, concurrently -> `close`."""

    concurrency: int
    """Tasks at once that keep it busy: some running, some whose pictures are being read meanwhile."""

    async def start(self) -> None:
        """Raises `SightlineError` or `ClientError` when it cannot be asked at all."""
        ...

    async def ask(self, task: Task, question: Question) -> Answered:
        """Raises `Failed`."""
        ...

    async def close(self) -> None: ...


class LocalAsker:
    """A model in this process: its engine, our decoders, no server."""

    def __init__(self, settings: Settings, model: str) -> None:
        """`model`: of `settings.models`, which are all there for its fallbacks."""
        self._service = Service(settings)
        self._model = model
        config: ModelConfig = next(m for m in settings.models if model in (m.name, *m.aliases))
        self.concurrency = 2 * config.max_concurrent
        """The engine's sequences, and as many that wait for one with their pictures understood."""

    async def start(self) -> None:
        await self._service.start(wait=True)
        status = next(s for s in self._service.models() if s.name == self._model)
        if status.state == "failed":
            await self._service.close()
            raise ClientError(f"The model {self._model!r} failed to load; the reason is above.")

    async def ask(self, task: Task, question: Question) -> Answered:
        try:
            pictures = [await _to_source(picture) for picture in task.pictures]
            request = _to_chat_request(task, question, self._model, pictures)
            text, finish = "", None
            async with aclosing(self._service.generate(request)) as items:
                async for item in items:
                    match item:
                        case ChoiceEvent(event=TextDelta(text=piece) | RefusalDelta(text=piece)):
                            text += piece
                        case ChoiceEvent(event=Finish() as end):
                            finish = end
            assert finish is not None, "every choice ends with a Finish"
        except (OSError, TypeError, ValueError) as error:
            raise _unreadable(error) from error
        except SightlineError as error:
            row = RowError(error.code or type(error).__name__, error.message, error.param)
            raise Failed(row, error.retryable, getattr(error, "retry_after_s", None)) from error
        usage = finish.usage
        return Answered(
            text, self._model, finish.reason, usage.prompt_tokens, usage.completion_tokens, sum(usage.image_tokens)
        )

    async def close(self) -> None:
        await self._service.close()


class RemoteAsker:
    """A server, by its address."""

    def __init__(self, url: str, api_key: str | None, model: str | None, concurrency: int = 32) -> None:
        self._client = AsyncClient(url, api_key=api_key, model=model, max_retries=0)
        self.concurrency = concurrency

    async def start(self) -> None:
        """Also finds out the model, if none was named."""
        await self._client.default_model()

    async def ask(self, task: Task, question: Question) -> Answered:
        fields: dict[str, Any] = {
            "temperature": question.temperature,
            "max_tokens": question.max_tokens,
            "seed": question.seed,
            "priority": _LOWEST_PRIORITY,
        }
        if question.schema is not None:
            schema = {"name": "answer", "schema": question.schema, "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        try:
            answer = await self._client.ask(
                task.prompt, *task.pictures, system=question.system, detail=question.detail, **fields
            )
        except (OSError, TypeError, ValueError) as error:
            raise _unreadable(error) from error
        except ClientError as error:
            raise _to_failed(error) from error
        return Answered(
            answer.text or answer.refusal or "",
            answer.model,
            answer.finish_reason,
            answer.prompt_tokens,
            answer.completion_tokens,
            sum(picture.tokens for picture in answer.pictures),
        )

    async def close(self) -> None:
        await self._client.close()


def _to_failed(error: ClientError) -> Failed:
    match error:
        case ApiError(status=status):
            row = RowError(error.code or f"status_{status}", error.message, error.param)
            told = error.headers.get("x-should-retry")
            retryable = told == "true" or (told is None and (status in (408, 409, 429) or status >= 500))
            after = error.headers.get("retry-after", "")
            return Failed(row, retryable, float(after) if after.isdecimal() else None)
        case _:
            return Failed(RowError(type(error).__name__, str(error)), isinstance(error, ConnectionFailed))


def _unreadable(error: Exception) -> Failed:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return Failed(RowError("picture_unreadable", f"The picture cannot be read: {said}."), retryable=False)


async def _to_source(picture: Picture) -> str | bytes:
    """As an `ImageRef` has it: a file's bytes where there is a file, else a URL."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | Path) and str(picture) and not str(picture).startswith(("http:", "https:", "data:")):
        return await asyncio.to_thread(Path(picture).read_bytes)
    return await asyncio.to_thread(to_url, picture)


def _to_chat_request(task: Task, question: Question, model: str, pictures: list[str | bytes]) -> ChatRequest:
    detail: Any = question.detail or "auto"
    refs = [ImageRef(source, f"pictures[{i}]", detail) for i, source in enumerate(pictures)]
    system = (Message[ImageRef]("system", (Text(question.system),)),) if question.system is not None else ()
    return ChatRequest(
        request_id=f"batch-{uuid4().hex}",
        model=model,
        messages=(*system, Message("user", (*refs, Text(task.prompt)))),
        sampling=SamplingParams(max_tokens=question.max_tokens, temperature=question.temperature, seed=question.seed),
        response_format=ResponseFormat("json_schema", question.schema) if question.schema else ResponseFormat(),
    )
