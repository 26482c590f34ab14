"""Tokens and text, and which of Whisper's special tokens a model has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

from sightline.engines import answer
from sightline.engines.checkpoint import CheckpointError, read_json
from sightline.engines.whisper.checkpoint import Facts
from sightline.types import SpeechTask

TIMESTAMP_S: Final = 0.02
_LANGUAGE: Final = re.compile(r"<\|([a-z]{2,3})\|>")


class Vocabulary:
    """Ids of special tokens are attributes; of those from `first_timestamp` on, each is `TIMESTAMP_S` later."""

    def __init__(self, model_dir: Path, facts: Facts) -> None:
        """Raises `CheckpointError` for a tokenizer that is not Whisper's."""
        definition = read_json(model_dir / "tokenizer.json")
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
        self._special: dict[str, int] = {entry["content"]: int(entry["id"]) for entry in definition["added_tokens"]}
        self._names: dict[int, str] = {token: name for name, token in self._special.items()}
        self.end = self._id("<|endoftext|>")
        self._spelled = answer.Vocabulary(model_dir, facts.shape.vocabulary, frozenset({self.end}))
        self.start = self._id("<|startoftranscript|>")
        self.before = self._id("<|startofprev|>")
        self.without_times = self._id("<|notimestamps|>")
        self.first_timestamp = self.without_times + 1
        self.no_speech = self._special.get("<|nospeech|>", self._special.get("<|nocaptions|>"))
        self.languages: Mapping[str, int] = {
            match[1]: token
            for name, token in self._special.items()
            if facts.is_multilingual and (match := _LANGUAGE.fullmatch(name)) and token > self.start
        }
        """By code. Empty: the model knows English only, whatever its tokenizer names, and is not told so."""

    def _id(self, name: str) -> int:
        try:
            return self._special[name]
        except KeyError:
            raise CheckpointError(f"tokenizer.json: there is no {name}, which Whisper's tokenizers have") from None

    @property
    def is_multilingual(self) -> bool:
        return bool(self.languages)

    @cached_property
    def silent(self) -> frozenset[int]:
        """Special tokens that are no part of an answer, whatever a model thinks of them."""
        last = self.first_timestamp - 1
        return frozenset(token for token in self._names if self.end < token <= last)

    def start_of(self, language: str, task: SpeechTask) -> list[int]:
        """What a transcript begins with."""
        if not self.is_multilingual:
            return [self.start]
        return [self.start, self.languages[language], self._id(f"<|{task}|>")]

    def encode(self, text: str) -> list[int]:
        """Tokens of a text. Special tokens that it names are left out: a client may not speak for the server."""
        return [token for token in self._tokenizer.encode(text, add_special_tokens=False).ids if token < self.end]

    def is_text(self, token: int) -> bool:
        return token < self.end

    def is_time(self, token: int) -> bool:
        return token >= self.first_timestamp

    def seconds(self, token: int) -> float:
        return (token - self.first_timestamp) * TIMESTAMP_S

    def spelling(self, token: int) -> bytes:
        return self._spelled.spelling(token) if self.is_text(token) else b""

    def text(self, tokens: Sequence[int]) -> str:
        return b"".join(map(self.spelling, tokens)).decode("utf-8", "replace")

    def words(self, tokens: Sequence[int], language: str) -> list[list[int]]:
        """The tokens of text, in words; of languages without spaces, in characters."""
        characters = self._characters(tokens)
        if language in {"zh", "ja", "th", "lo", "my", "yue"}:
            return characters
        words: list[list[int]] = []
        for character in characters:
            text = self.text(character)
            begins = text.startswith(" ") or not any(c.isalnum() for c in text)
            if not words or (begins and not self.text(words[-1]).isspace()):
                words.append(character)
            else:
                words[-1] = words[-1] + character
        return words

    def _characters(self, tokens: Sequence[int]) -> list[list[int]]:
        """Tokens grouped so that each group is whole characters."""
        groups: list[list[int]] = []
        open_group: list[int] = []
        for token in tokens:
            open_group.append(token)
            if "\ufffd" not in self.text(open_group):
                groups.append(open_group)
                open_group = []
        return [*groups, open_group] if open_group else groups
