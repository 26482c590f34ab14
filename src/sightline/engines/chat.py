"""Messages to tokens: the checkpoint's own chat template, and what clients wrote that can never become a special token.

The template is rendered with an unguessable sentinel in the place of every text (`sentinels.py`), so that what the
template wrote and what a person wrote stay apart: messages, and of tools their names, descriptions, schemas and
arguments. Special tokens are looked for only in what the template wrote; everything else is plain text to the
tokenizer, whatever it looks like. Runs of plain text are tokenised in one piece, the template's and the person's
together, which gives the reference's tokens.

A template that knows no tools is helped: the tools are told in the system turn (`tool_formats.instruction`), calls
stand in the assistant's words and their results in a user's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from sightline.engines.checkpoint import CheckpointError, read_json
from sightline.engines.sentinels import Texts, Written
from sightline.engines.tool_formats import FORMATS, GENERIC, ToolFormat, format_of, instruction, to_function
from sightline.errors import InvalidRequest
from sightline.types import EngineRequest, Image, Message, Text, Tool, ToolCall

_IMAGE: Final = {"type": "image"}
_TEXTS: Final = "sightline_texts"
"""The template's variable in which `tojson` finds the texts of this rendering."""
_REFUSALS: Final = (jinja2.TemplateError, TypeError, ValueError, KeyError)


@dataclass(frozen=True, slots=True)
class _ToolStyle:
    """How a template takes calls and their results; found by trying."""

    arguments: str = "object"
    """`object`, or `string` for the JSON text."""
    short_ids: bool = False
    """Ids are nine letters or digits (Mistral's): ours stand for the clients'."""


class ChatTemplate:
    """The chat template of one model. Thread-safe."""

    def __init__(self, model_dir: Path, variables: dict[str, str] | None = None, tool_format: str = "auto") -> None:
        """`variables`: what the template may use beside the messages, such as `bos_token`; `tool_format`: how the model
        writes calls, by its name in `FORMATS`, or `auto`. Raises `CheckpointError` when the template is missing or
        broken."""
        source = _read_template(model_dir)
        self._template = _compile(source)
        self._variables = variables or {}
        self._takes_strings = self._shows([{"role": "user", "content": "probe"}])
        self._takes_system = self._shows_content([Message("system", (Text("probe"),)), Message("user", (Text("a"),))])
        self._tools = self._tool_style()
        """None: it knows no tools."""
        known = format_of(source) if self._tools is not None else GENERIC
        self.tool_format: ToolFormat = FORMATS.get(tool_format, known)

    def render(self, request: EngineRequest) -> list[Written]:
        """Raises `InvalidRequest` for messages that the template refuses."""
        tools = request.tools if request.tool_choice.mode != "none" else ()
        texts = Texts()
        try:
            rendered = self._rendered(texts, request.messages, tools, self._tools)
        except _REFUSALS as error:
            reason = texts.hidden(str(error))[:200]
            raise InvalidRequest(
                f"This model's chat template refuses these messages: {reason}", param="messages"
            ) from error
        return texts.split(rendered)

    def _rendered(
        self, texts: Texts, messages: Sequence[Message[Image]], tools: Sequence[Tool], style: _ToolStyle | None
    ) -> str:
        if style is None:
            return self._render(texts, list(self._in_words(texts, messages, tools)), None)
        names = {call.id: call.name for message in messages for call in message.tool_calls}
        ids = {identity: f"{number:09d}" for number, identity in enumerate(names)} if style.short_ids else {}
        converted = [self._to_template(texts, message, style, names, ids) for message in messages]
        functions = [_function(texts, tool) for tool in tools]
        return self._render(texts, converted, functions or None)

    def _render(self, texts: Texts, messages: list[dict[str, Any]], tools: Any) -> str:
        return self._template.render(
            messages=messages, add_generation_prompt=True, tools=tools, **self._variables, **{_TEXTS: texts}
        )

    # --- messages ------------------------------------------------------------------------------------------------

    def _to_template(
        self, texts: Texts, message: Message[Image], style: _ToolStyle, names: dict[str, str], ids: dict[str, str]
    ) -> dict[str, Any]:
        """A message as chat templates expect it (Hugging Face's conventions for calls and results)."""

        def identity(given: str) -> str:
            return ids.get(given, "0" * 9) if style.short_ids else texts.sentinel(given)

        out: dict[str, Any] = {"role": message.role, "content": self._content(_pieces(texts, message.content))}
        if message.tool_calls:
            out["tool_calls"] = [
                {
                    "id": identity(call.id),
                    "type": "function",
                    "function": {"name": texts.sentinel(call.name), "arguments": _arguments(texts, call, style)},
                }
                for call in message.tool_calls
            ]
        if message.role == "tool" and message.tool_call_id is not None:
            out["tool_call_id"] = identity(message.tool_call_id)
            if (name := message.name or names.get(message.tool_call_id)) is not None:
                out["name"] = texts.sentinel(name)
        return out

    def _content(self, pieces: Sequence[str | dict[str, Any]]) -> Any:
        """A string where there is only text, else a list of parts."""
        if self._takes_strings and all(isinstance(piece, str) for piece in pieces):
            return "".join(piece for piece in pieces if isinstance(piece, str))
        return [{"type": "text", "text": piece} if isinstance(piece, str) else piece for piece in pieces]

    def _in_words(
        self, texts: Texts, messages: Sequence[Message[Image]], tools: Sequence[Tool]
    ) -> Iterator[dict[str, Any]]:
        """Messages for a template that knows no tools. What we say ourselves may hold the format's own tokens."""
        told: list[str | dict[str, Any]] = []
        if tools:
            told = [instruction([texts.sentinel(json.dumps(to_function(t), ensure_ascii=False)) for t in tools])]
        if told and self._takes_system and not (messages and messages[0].role == "system"):
            yield {"role": "system", "content": self._content(told)}
            told = []
        teller = "system" if self._takes_system else "user"
        results: list[str | dict[str, Any]] = []
        for message in messages:
            pieces = _pieces(texts, message.content)
            if message.role == "tool":
                results += [*_apart(results, "\n"), "<tool_response>\n", *pieces, "\n</tool_response>"]
                continue
            if results:
                yield {"role": "user", "content": self._content(results)}
                results = []
            for call in message.tool_calls:
                pieces += [*_apart(pieces, "\n"), _call_in_words(texts, call)]
            if told and message.role == teller:
                first, second = (pieces, told) if self._takes_system else (told, pieces)
                pieces, told = [*first, *_apart(first, "\n\n"), *second], []
            yield {"role": message.role, "content": self._content(pieces)}
        if results:
            yield {"role": "user", "content": self._content(results)}

    # --- what a template knows, found by trying ------------------------------------------------------------------

    def _shows(self, messages: list[dict[str, Any]]) -> bool:
        """Whether a message's content may be a string: a template that only knows lists of parts would drop it."""
        try:
            return "probe" in self._render(Texts(), messages, None).lower()
        except _REFUSALS:
            return False

    def _shows_content(self, messages: Sequence[Message[Image]]) -> bool:
        return "probe" in self._tried(messages, (), _ToolStyle())

    def _tool_style(self) -> _ToolStyle | None:
        tool = Tool("probe_tool", "probe_words", {"type": "object", "properties": {"probe_key": {"type": "string"}}})
        asked = Message[Image]("user", (Text("a"),))
        if "probe_tool" not in self._tried((asked,), (tool,), _ToolStyle()):
            return None
        call = ToolCall("probe_id", "probe_tool", '{"probe_key": "probe_value"}')
        talk = (
            asked,
            Message[Image]("assistant", (), (call,)),
            Message[Image]("tool", (Text("probe_result"),), (), "probe_id"),
        )
        for style in (_ToolStyle(a, s) for a in ("object", "string") for s in (False, True)):
            shown = self._tried(talk, (tool,), style)
            if all(probe in shown for probe in ("probe_value", "probe_result")) and "{'" not in shown:
                return style
        return None

    def _tried(self, messages: Sequence[Message[Image]], tools: Sequence[Tool], style: _ToolStyle) -> str:
        """What the template makes of it; nothing, if it refuses."""
        texts = Texts()
        try:
            return "".join(run.text for run in texts.split(self._rendered(texts, messages, tools, style)))
        except _REFUSALS:
            return ""


def _pieces(texts: Texts, content: Sequence[Text | Image]) -> list[str | dict[str, Any]]:
    """Sentinels and pictures. Nothing that is to be said stays nothing, so that templates may ask."""
    if not any(part.text if isinstance(part, Text) else True for part in content):
        return []
    return [texts.sentinel(part.text) if isinstance(part, Text) else _IMAGE for part in content]


def _apart(pieces: Sequence[object], space: str) -> list[str]:
    """What stands before the next piece, if it is not the first."""
    return [space] if pieces else []


def _function(texts: Texts, tool: Tool) -> dict[str, Any]:
    function = to_function(tool)["function"]
    return {
        "type": "function",
        "function": {
            "name": texts.sentinel(function["name"]),
            "description": texts.sentinel(function["description"]),
            "parameters": texts.schema(function["parameters"]),
        },
    }


def _arguments(texts: Texts, call: ToolCall, style: _ToolStyle) -> Any:
    """An object where the template takes one and the model wrote one."""
    if style.arguments == "object":
        try:
            arguments = json.loads(call.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if isinstance(arguments, dict):
            return texts.value(arguments)
    return texts.sentinel(call.arguments)


def _call_in_words(texts: Texts, call: ToolCall) -> str:
    name, arguments = texts.sentinel(json.dumps(call.name)), texts.sentinel(call.arguments or "{}")
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'


class PromptTokenizer:
    """What the template and people wrote, to tokens. Thread-safe."""

    def __init__(self, model_dir: Path) -> None:
        """Raises `CheckpointError` when `tokenizer.json` is missing or broken."""
        definition = read_json(model_dir / "tokenizer.json")
        added = {entry["content"]: entry for entry in definition["added_tokens"]}
        self.special = {content: int(entry["id"]) for content, entry in added.items()}
        self._control = {int(entry["id"]): content for content, entry in added.items() if entry.get("special")}
        self._swallows_before = {content for content, entry in added.items() if entry.get("lstrip")}
        self._swallows_after = {content for content, entry in added.items() if entry.get("rstrip")}
        longest_first = sorted(self.special, key=len, reverse=True)
        self._split_special = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")").split
        # A tokenizer that has never heard of special tokens cannot be talked into one.
        plain = {**definition, "added_tokens": [], "post_processor": None}
        self._first = Tokenizer.from_str(json.dumps(plain))
        self._later = Tokenizer.from_str(json.dumps(_without_first_space(plain)))
        self._num_tokens = 1 + max((*self._first.get_vocab().values(), *self.special.values()))
        self._first_space = "Prepend" in json.dumps(plain.get("normalizer"))

    def encode_later(self, text: str) -> list[int]:
        """Plain text in the middle of something."""
        if not self._first_space:
            return _ids(self._later, text)
        # Where a space comes before every text, a character of no meaning takes it.
        whole, before = _ids(self._later, f"\x02{text}"), _ids(self._later, "\x02")
        return whole[len(before) :] if whole[: len(before)] == before else whole

    def plain(self, prompt: str | Sequence[int], bos: str | None = None) -> list[int]:
        """The tokens of a prompt without a template: of a text, in which nothing is special, behind the token that
        begins every text (`bos`); or the ids that a client gives.

        Raises `InvalidRequest` for no tokens at all, for ids that the vocabulary does not have, and for special ones
        other than a `bos` at the beginning.
        """
        begin = [] if bos is None else [self.special[bos]]
        if isinstance(prompt, str):
            tokens = begin + self._encode(prompt, first=True, after="")
        else:
            tokens = list(prompt)
            for index, token in enumerate(tokens):
                if not 0 <= token < self._num_tokens:
                    raise _wrong_prompt(f"holds the token id {token}; this model's are 0 to {self._num_tokens - 1}")
                if token in self._control and (index or token not in begin):
                    raise _wrong_prompt(f"holds the id {token} of a special token; it may hold those of text alone")
        if not tokens:
            raise _wrong_prompt("has no tokens")
        return tokens

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
        return _ids(self._first if first else self._later, text) if text else []


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """By the one way of the library that lets other threads run meanwhile: `encode` keeps the interpreter's lock, for
    seconds where a text has megabytes. Without offsets it takes a third of the time besides."""
    return list(tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)


def _wrong_prompt(what: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid 'prompt': it {what}.", param="prompt")


def _without_first_space(definition: dict[str, Any]) -> dict[str, Any]:
    """For text that does not begin a prompt: SentencePiece's vocabularies put a space before text that does."""
    pre: dict[str, Any] = definition.get("pre_tokenizer") or {}
    if pre.get("type") == "Metaspace" and pre.get("prepend_scheme") == "first":
        return {**definition, "pre_tokenizer": {**pre, "prepend_scheme": "never"}}
    return definition


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
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise CheckpointError(f"chat template: {error}") from error


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here they are rendered like any."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@jinja2.pass_context
def _to_json(context: Context, value: Any, **options: Any) -> str:
    texts: Texts = context[_TEXTS]
    return texts.to_json(value, **options)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
