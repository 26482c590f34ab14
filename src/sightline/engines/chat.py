"""Messages to tokens: the checkpoint's own chat template, and user text that can never become a special token.

The template is rendered with an unguessable sentinel in the place of every text, so that what the template wrote and
what a person wrote stay apart. Special tokens are looked for only in what the template wrote; everything else is plain
text to the tokenizer, whatever it looks like. Runs of plain text are tokenised in one piece, the template's and the
person's together, which gives the reference's tokens.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from sightline.engines.checkpoint import CheckpointError, read_json
from sightline.errors import InvalidRequest, UnsupportedFeature
from sightline.types import EngineRequest, Image, Message, Text

_IMAGE: Final = {"type": "image"}


@dataclass(frozen=True, slots=True)
class Written:
    """A run of a prompt, and who wrote it."""

    text: str
    by_template: bool


class ChatTemplate:
    """The chat template of one model. Thread-safe."""

    def __init__(self, model_dir: Path, variables: dict[str, str] | None = None) -> None:
        """`variables`: what the template may use beside the messages, such as `bos_token`. Raises `CheckpointError`
        when the template is missing or broken."""
        self._template = _compile(_read_template(model_dir))
        self._variables = variables or {}
        self._takes_strings = self._knows_strings()

    def render(self, request: EngineRequest) -> list[Written]:
        """Raises `InvalidRequest` for messages that the template refuses, `UnsupportedFeature` for tool calls."""
        mark = secrets.token_hex(16)
        texts: list[str] = []

        def sentinel(text: str) -> str:
            texts.append(_well_formed(text))
            return f"{mark}:{len(texts) - 1};"

        messages = [self._to_template(message, sentinel) for message in request.messages]
        try:
            rendered = self._render(messages)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            reason = str(error).replace(mark, "…")[:200]
            raise InvalidRequest(
                f"This model's chat template refuses these messages: {reason}", param="messages"
            ) from error
        pieces = re.split(rf"{mark}:(\d+);", rendered)
        return [
            Written(texts[int(piece)], by_template=False) if number % 2 else Written(piece, by_template=True)
            for number, piece in enumerate(pieces)
        ]

    def _render(self, messages: list[dict[str, Any]]) -> str:
        return self._template.render(messages=messages, add_generation_prompt=True, tools=None, **self._variables)

    def _knows_strings(self) -> bool:
        """Whether a message's content may be a string: a template that only knows lists of parts would drop it."""
        mark = secrets.token_hex(16)
        try:
            return mark in self._render([{"role": "user", "content": mark}])
        except (jinja2.TemplateError, TypeError, ValueError):
            return False

    def _to_template(self, message: Message[Image], sentinel: Callable[[str], str]) -> dict[str, Any]:
        """A message as chat templates expect it: a string where there is only text, else a list of parts."""
        if message.tool_calls:
            raise UnsupportedFeature("This model does not take tool calls.", param="messages")
        if self._takes_strings and all(isinstance(part, Text) for part in message.content):
            text = "".join(part.text for part in message.content if isinstance(part, Text))
            return {"role": message.role, "content": sentinel(text) if text else ""}
        parts = [
            {"type": "text", "text": sentinel(part.text)} if isinstance(part, Text) else _IMAGE
            for part in message.content
        ]
        return {"role": message.role, "content": parts}


class PromptTokenizer:
    """What the template and people wrote, to tokens. Thread-safe."""

    def __init__(self, model_dir: Path) -> None:
        """Raises `CheckpointError` when `tokenizer.json` is missing or broken."""
        definition = read_json(model_dir / "tokenizer.json")
        added = {entry["content"]: entry for entry in definition["added_tokens"]}
        self.special = {content: int(entry["id"]) for content, entry in added.items()}
        self._swallows_before = {content for content, entry in added.items() if entry.get("lstrip")}
        self._swallows_after = {content for content, entry in added.items() if entry.get("rstrip")}
        longest_first = sorted(self.special, key=len, reverse=True)
        self._split_special = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")").split
        # A tokenizer that has never heard of special tokens cannot be talked into one.
        plain = {**definition, "added_tokens": [], "post_processor": None}
        self._first = Tokenizer.from_str(json.dumps(plain))
        self._later = Tokenizer.from_str(json.dumps(_without_first_space(plain)))

    def tokenize(self, prompt: Iterable[Written]) -> list[int]:
        tokens: list[int] = []
        plain, after = "", ""
        for run in prompt:
            for part in self._split_special(run.text) if run.by_template else [run.text]:
                if not run.by_template or part not in self.special:
                    plain += part
                    continue
                tokens += self._encode(plain, first=not tokens, after=after, before=part)
                tokens.append(self.special[part])
                plain, after = "", part
        return tokens + self._encode(plain, first=not tokens, after=after)

    def _encode(self, text: str, *, first: bool, after: str, before: str = "") -> list[int]:
        """A run of plain text between two special tokens, some of which swallow the white space beside them."""
        if after in self._swallows_after:
            text = text.lstrip()
        if before in self._swallows_before:
            text = text.rstrip()
        plain = self._first if first else self._later
        return list(plain.encode(text, add_special_tokens=False).ids) if text else []


def _without_first_space(definition: dict[str, Any]) -> dict[str, Any]:
    """For text that does not begin a prompt: SentencePiece's vocabularies put a space before text that does."""
    pre: dict[str, Any] = definition.get("pre_tokenizer") or {}
    if pre.get("type") == "Metaspace" and pre.get("prepend_scheme") == "first":
        return {**definition, "pre_tokenizer": {**pre, "prepend_scheme": "never"}}
    return definition


def _well_formed(text: str) -> str:
    """Half of a surrogate pair, which JSON can hold and UTF-8 cannot, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def misplaced_pictures() -> InvalidRequest:
    return InvalidRequest(
        "This model's chat template does not take pictures where the messages have them; put them in a user message.",
        param="messages",
    )


def _read_template(model_dir: Path) -> str:
    """From where transformers looks for it: a file of its own, or a key of `chat_template.json` or of
    `tokenizer_config.json`."""
    if (file := model_dir / "chat_template.jinja").exists():
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (model_dir / name).exists() and isinstance(
            template := read_json(model_dir / name).get("chat_template"), str
        ):
            return template
    raise CheckpointError("there is no chat template (chat_template.jinja, or a key of tokenizer_config.json)")


def _compile(source: str) -> jinja2.Template:
    """In the sandbox and with the settings that transformers uses (`utils/chat_template_utils.py`)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise CheckpointError(f"chat template: {error}") from error


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
