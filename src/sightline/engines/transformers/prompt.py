"""Messages to tokens, for any tokenizer and template: the processor says what a picture's placeholder becomes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sightline.engines.chat import ChatTemplate, PromptTokenizer, misplaced_pictures
from sightline.engines.checkpoint import CheckpointError
from sightline.engines.sentinels import Written
from sightline.engines.transformers.pictures import Pictures, Tensors
from sightline.types import EngineRequest, Message, Text, TokenCount

_PROBE: Final = "Is 1 + 1 = 2?\n  Sí, \u4e16\u754c: naïve <b>text</b>.\n\n"


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    tokens: list[int]
    kinds: list[int]
    """For each token: 1 if it stands for a part of a picture, else 0."""
    pictures: Tensors
    count: TokenCount


class PromptBuilder:
    """Builds prompts for one model. Thread-safe."""

    def __init__(self, model_dir: Path, pictures: Pictures, tokenizer: Any, tool_format: str = "auto") -> None:
        """`tokenizer`: transformers' own. Raises `CheckpointError` when the tokenizer or the template is missing or
        broken, or when text tokenised as we do it, in pieces, would not give the tokens that transformers gives."""
        self._pictures = pictures
        self._template = ChatTemplate(model_dir, dict(tokenizer.special_tokens_map), tool_format)
        self._tokenizer = PromptTokenizer(model_dir)
        self.tool_format = self._template.tool_format
        self.encode_later = self._tokenizer.encode_later
        begins_with_bos = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
        self._bos: str | None = tokenizer.bos_token if begins_with_bos else None
        self._check(tokenizer)

    def count(self, request: EngineRequest) -> TokenCount:
        """Raises what `build` raises. Pictures may be blank: only their sizes matter."""
        return TokenCount(len(self._tokens(request)), tuple(map(self._pictures.tokens, request.images)))

    def build(self, request: EngineRequest) -> Prompt:
        """Raises `InvalidRequest` for messages that the template refuses, for pictures of an impossible size, and as
        `PromptTokenizer.plain`."""
        tokens = self._tokens(request)
        (kinds,) = self._pictures.processor.create_mm_token_type_ids([tokens])
        count = TokenCount(len(tokens), tuple(map(self._pictures.tokens, request.images)))
        return Prompt(tokens, kinds, self._pictures.tensors(request.images), count)

    def _tokens(self, request: EngineRequest) -> list[int]:
        if request.prompt is not None:
            return self._tokenizer.plain(request.prompt, self._bos)
        expansions = self._pictures.expansions(request.images)
        prompt = _expanded(self._template.render(request), self._pictures.placeholder, expansions)
        return self._tokenizer.tokenize(self._begun(prompt))

    def _begun(self, prompt: list[Written]) -> list[Written]:
        """With the token that this tokenizer begins every text with, unless the template wrote it."""
        if self._bos is None or (prompt and prompt[0].by_template and prompt[0].text.startswith(self._bos)):
            return prompt
        return [Written(self._bos, by_template=True), *prompt]

    def _check(self, tokenizer: Any) -> None:
        messages = (Message[Any]("user", (Text(_PROBE),)),)
        prompt = self._begun(self._template.render(EngineRequest("", "", messages)))
        theirs = tokenizer("".join(run.text for run in prompt), add_special_tokens=False)["input_ids"]
        if self._tokenizer.tokenize(prompt) != theirs:
            raise CheckpointError("tokenizer.json: its text cannot be kept apart from special tokens; it is not served")


def _expanded(prompt: Sequence[Written], placeholder: str, expansions: Sequence[str]) -> list[Written]:
    """The prompt with each placeholder that the template wrote replaced. Raises `InvalidRequest` unless there are as
    many as pictures."""
    waiting: Iterator[str] = iter(expansions)
    out = []
    for run in prompt:
        if not run.by_template:
            out.append(run)
            continue
        first, *others = run.text.split(placeholder)
        for other in others:
            if (expansion := next(waiting, None)) is None:
                raise misplaced_pictures()
            first += expansion + other
        out.append(Written(first, by_template=True))
    if next(waiting, None) is not None:
        raise misplaced_pictures()
    return out
