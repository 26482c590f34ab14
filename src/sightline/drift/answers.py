"""What one engine answers: through the service, as every client's requests go, one question after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from sightline.config import ModelConfig, Settings
from sightline.drift.questions import Question
from sightline.engines import EngineInfo
from sightline.errors import EngineUnavailable, SightlineError
from sightline.items import ChoiceEvent, Prepared
from sightline.service import Service
from sightline.types import Finish, TextDelta, TokenLogprob


@dataclass(frozen=True, slots=True)
class Token:
    text: str
    """Its bytes as UTF-8, with `\\x..` for what is none by itself."""
    logprob: float
    """Natural logarithm."""
    margin: float | None
    """How far the likeliest other token was behind, in nats; None: the engine did not tell of another."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one question. Where `error` is told, the rest is as far as it had come."""

    text: str = ""
    reason: str = ""
    """Finish reason: `stop`, `length` ..."""
    tokens: tuple[Token, ...] | None = None
    """Without the one that ends an answer; None: the engine does not tell them."""
    served: tuple[tuple[int, int], ...] = ()
    """Width and height in pixels, of each picture."""
    image_tokens: tuple[int, ...] | None = None
    """None: the engine can only estimate them."""
    prompt_tokens: int = 0
    """As the engine counted them when it ran: text and pictures."""
    error: str | None = None

    @property
    def text_tokens(self) -> int | None:
        return None if self.image_tokens is None else self.prompt_tokens - sum(self.image_tokens)


@dataclass(frozen=True, slots=True)
class Told:
    """By one engine."""

    info: EngineInfo
    answers: tuple[Answer, ...]
    """In the order of the questions."""


async def ask(
    config: ModelConfig, questions: Sequence[Question], max_tokens: int, progress: Callable[[int], None]
) -> Told:
    """Starts the model, asks one question after the other, stops it. `progress` is given how many are answered.

    Raises `EngineUnavailable` when the model does not load. What goes wrong later is in the `Answer` it spoils.
    """
    service = Service(Settings(models=(config,)))
    try:
        await service.start()
        info = service.models()[0].info
        if info is None:
            raise EngineUnavailable(f"The engine {config.name!r} failed to load. The line above says why.")
        answers = []
        for question in questions:
            answers.append(await _answer(service, config.name, question, max_tokens, "logprobs" in info.features))
            progress(len(answers))
        return Told(info, tuple(answers))
    finally:
        await service.close()


async def _answer(service: Service, model: str, question: Question, max_tokens: int, logprobs: bool) -> Answer:
    request = question.to_request(model, max_tokens=max_tokens, logprobs=logprobs)
    prepared: Prepared | None = None
    finish: Finish | None = None
    text, told, error = "", list[TokenLogprob](), None
    try:
        async with aclosing(service.generate(request)) as items:
            async for item in items:
                if isinstance(item, Prepared):
                    prepared = item
                elif isinstance(item, ChoiceEvent) and isinstance(item.event, TextDelta):
                    text += item.event.text
                    told += item.event.logprobs
                elif isinstance(item, ChoiceEvent) and isinstance(item.event, Finish):
                    finish = item.event
    except SightlineError as caught:
        error = caught.message
    count = prepared.token_count if prepared else None
    return Answer(
        text=text,
        reason=finish.reason if finish else "",
        tokens=tuple(map(_token, told)) if logprobs and (told or not text) else None,
        served=tuple((i.served_width, i.served_height) for i in prepared.images) if prepared else (),
        image_tokens=count.image_tokens if count and count.exact else None,
        prompt_tokens=finish.usage.prompt_tokens if finish else 0,
        error=error,
    )


def _token(told: TokenLogprob) -> Token:
    text = _text(told)
    others = [other.logprob for other in told.top if _text(other) != text]
    return Token(text, told.logprob, told.logprob - max(others) if others else None)


def _text(told: TokenLogprob) -> str:
    return bytes(told.bytes).decode("utf-8", "backslashreplace") if told.bytes else told.token
