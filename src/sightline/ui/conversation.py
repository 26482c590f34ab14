"""A conversation on the page: from what was said to the next request, from a reply to what is shown. Pure.

turns, question, parameters --to_body--> the body of a chat completion --snippets.py--> curl, Python
turns --to_shown--> messages of the page's chat window
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from sightline.client.wire import Answer, ApiError, PictureReport, to_body

DETAILS = ("auto", "low", "high", "original")
URL = re.compile(r"https?://\S+", re.IGNORECASE)

Shown = dict[str, Any]
"""A message of Gradio's `Chatbot`: `role`, `content`, and `metadata` where it can be folded away."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """What the page's controls say. None and "": the request does not name it."""

    model: str
    system: str = ""
    temperature: float | None = None
    max_tokens: int | None = None
    detail: str = "auto"
    max_pixels: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a question has no answer, or only the beginning of one, in the server's words."""

    message: str
    status: int | None = None
    code: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """A question, and what has come of it so far."""

    question: str
    pictures: tuple[str, ...] = ()
    """Paths of files and URLs, in the order the model sees them."""
    text: str = ""
    answer: Answer | None = None
    """Once it is whole."""
    failure: Failure | None = None
    stopped: bool = False
    first_token_s: float | None = None
    total_s: float = 0.0
    snippets: Mapping[str, str] | None = None
    """The request as code, by language."""
    seen: tuple[str, ...] = ()
    """All pictures of the request, earlier ones included: what `answer.pictures` is about."""


class PictureFile:
    """Stands in a body for a picture's bytes, by the name of its file."""

    def __init__(self, path: str) -> None:
        self.name = PurePath(path).name

    def __repr__(self) -> str:
        return f"picture({self.name!r})"


# --- what is asked ---------------------------------------------------------------------------------------------------


def read_urls(text: str) -> tuple[str, ...]:
    """Addresses, with spaces or line ends between them. Raises `ValueError` for what is none."""
    words = text.split()
    for word in words:
        if URL.fullmatch(word) is None:
            raise ValueError(f"{word[:80]!r} is no address of a picture: it begins with https:// or http://.")
    return tuple(words)


def to_request(turns: Sequence[Turn], parameters: Parameters, to_url: Callable[[str], Any]) -> dict[str, Any]:
    """The body of the request for the last turn's answer. `to_url` says what stands for a picture's file: the data URL
    that is sent, or a `PictureFile` in code that people read. URLs are for the server to fetch, by its own rules.

    What was refused, or stopped before its first word, is not sent again: one bad picture would spoil all that follows.
    """
    messages: list[dict[str, Any]] = []
    if parameters.system.strip():
        messages.append({"role": "system", "content": parameters.system.strip()})
    for turn in turns[:-1]:
        if turn.text:
            messages += [_to_message(turn, parameters, to_url), {"role": "assistant", "content": turn.text}]
    messages.append(_to_message(turns[-1], parameters, to_url))
    fields = {
        "temperature": parameters.temperature,
        "max_tokens": parameters.max_tokens,
        "max_pixels": parameters.max_pixels,
    }
    return to_body(parameters.model, messages, fields, stream=True)


def _to_message(turn: Turn, parameters: Parameters, to_url: Callable[[str], Any]) -> dict[str, Any]:
    detail = {} if parameters.detail == "auto" else {"detail": parameters.detail}
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": picture if is_url(picture) else to_url(picture), **detail}}
        for picture in turn.pictures
    ]
    text = [{"type": "text", "text": turn.question}] if turn.question else []
    return {"role": "user", "content": parts + text if parts else turn.question}


def pictures_of(turns: Sequence[Turn]) -> tuple[str, ...]:
    """Of the request for the last turn's answer, in its order."""
    sent = [turn for turn in turns[:-1] if turn.text] + [turns[-1]]
    return tuple(picture for turn in sent for picture in turn.pictures)


def is_url(picture: str) -> bool:
    return URL.match(picture) is not None


def to_failure(error: Exception, request_id: str | None = None) -> Failure:
    if isinstance(error, ApiError):
        return Failure(error.message, error.status, error.code, error.request_id)
    return Failure(str(error), request_id=request_id)


def to_choices(models: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Of `GET /v1/models`: what is shown and what is sent, for each that answers messages; those that see come first.
    Servers that are not Sightline say nothing of what their models can do."""
    choices = []
    for model in models.get("data", ()):
        told = model.get("sightline") or {}
        if "messages" not in (told.get("work") or ["messages"]):
            continue
        sees = None if told.get("vision") is None else "sees pictures" if told["vision"] else "text only"
        state = told.get("state") if told.get("state") != "ready" else None
        notes = [note for note in (sees, state) if note]
        choices.append((told.get("vision") is False, " · ".join([model["id"], *notes]), model["id"]))
    return [(label, name) for _, label, name in sorted(choices, key=lambda choice: choice[0])]


# --- what is shown ---------------------------------------------------------------------------------------------------


def to_shown(turns: Sequence[Turn]) -> list[Shown]:
    return [message for turn in turns for message in _to_messages(turn)]


def _to_messages(turn: Turn) -> list[Shown]:
    # A picture's URL is shown as text: a browser or Gradio that fetched it would do so by other rules than the server.
    pictures: list[Any] = [f"Picture at {url}" if is_url(url) else {"path": url} for url in turn.pictures]
    shown: list[Shown] = [{"role": "user", "content": [*pictures, *([turn.question] if turn.question else [])]}]
    if turn.text:
        shown.append({"role": "assistant", "content": turn.text})
    if turn.answer is not None and turn.answer.refusal:
        shown.append({"role": "assistant", "content": f"The model declined: {turn.answer.refusal}"})
    elif turn.answer is not None and not turn.text:
        shown.append({"role": "assistant", "content": "*The model said nothing.*"})
    if turn.failure is not None:
        shown.append({"role": "assistant", "content": to_failure_text(turn.failure)})
    elif turn.stopped:
        shown.append({"role": "assistant", "content": "*Stopped.*"})
    if turn.snippets is not None and (turn.answer or turn.failure or turn.stopped):
        report = {"title": to_summary(turn), "status": "done"}
        shown.append({"role": "assistant", "content": to_report(turn), "metadata": report})
    return shown


def to_failure_text(failure: Failure) -> str:
    """Markdown."""
    known = [
        f"status {failure.status}" if failure.status is not None else None,
        f"`{failure.code}`" if failure.code else None,
        f"request `{failure.request_id}`" if failure.request_id else None,
    ]
    facts = " · ".join(fact for fact in known if fact)
    return f"⚠️ {_escaped(failure.message)}" + (f"\n\n{facts}" if facts else "")


def to_summary(turn: Turn) -> str:
    """One line: what it cost."""
    facts = []
    if turn.answer is not None:
        reports = turn.answer.pictures
        if reports:
            tokens = sum(report.tokens for report in reports)
            facts.append(f"{_count(len(reports), 'picture')}, {_count(tokens, 'token')}")
        facts.append(f"{turn.answer.prompt_tokens} tokens in, {turn.answer.completion_tokens} out")
    if turn.first_token_s is not None:
        facts.append(f"first after {_seconds(turn.first_token_s)}")
    facts.append(f"{_seconds(turn.total_s)} in all")
    return " · ".join(facts)


def to_report(turn: Turn) -> str:
    """Markdown: each picture's size and cost, the tokens, and the request as code."""
    parts = []
    answer = turn.answer
    if answer is not None:
        if answer.pictures:
            parts.append(_to_table(turn.seen, answer.pictures))
        kept = f", {answer.cached_tokens} of them kept from before" if answer.cached_tokens else ""
        cut = ", cut at its limit" if answer.finish_reason == "length" else ""
        parts.append(
            f"Prompt: {_count(answer.prompt_tokens, 'token')}{kept}. "
            f"Answer: {_count(answer.completion_tokens, 'token')}{cut}."
        )
        engine = f" on `{answer.engine}`" if answer.engine else ""
        request = f", request `{answer.request_id}`" if answer.request_id else ""
        parts.append(f"Answered by `{answer.model}`{engine}{request}.")
    parts += [
        f"**The same request as {name}**\n\n{_fenced(code, name)}" for name, code in (turn.snippets or {}).items()
    ]
    return "\n\n".join(parts)


def _to_table(pictures: Sequence[str], reports: Sequence[PictureReport]) -> str:
    rows = ["| picture | its size | seen as | tokens | cached |", "|---|---|---|---|---|"]
    for picture, r in zip(pictures, reports, strict=False):
        name = picture if is_url(picture) else PurePath(picture).name
        sizes = f"{r.width} × {r.height} | {r.served_width} × {r.served_height}"
        rows.append(f"| {_escaped(name)} | {sizes} | {r.tokens} | {'yes' if r.cached else 'no'} |")
    return "\n".join(rows)


def _fenced(code: str, language: str) -> str:
    """A fence longer than any in the code."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", code) or [""]))
    return f"{fence}{ {'curl': 'bash', 'Python': 'python'}.get(language, '') }\n{code}\n{fence}"


def _escaped(text: str) -> str:
    """As text, whatever marks of Markdown or HTML are in it."""
    return html.escape(re.sub(r"([\\`*_\[\]|#~])", r"\\\1", text), quote=False)


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"
