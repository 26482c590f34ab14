"""Tokens to text, and when an answer ends.

Text is given out when it is final: whole UTF-8 characters, and nothing that could still become a stop string.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sightline.engines.checkpoint import CheckpointError, read_json
from sightline.engines.sampler import Logprobs
from sightline.engines.stops import StopStrings
from sightline.types import FinishReason, SamplingParams, TextDelta, TokenLogprob

_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-F]{2})>").fullmatch


class Vocabulary:
    """Token ids to bytes: of a byte-level vocabulary (GPT-2's way), or of one with byte fallback (SentencePiece's)."""

    def __init__(self, model_dir: Path, size: int, eos_tokens: frozenset[int]) -> None:
        """`size`: of the model's output, which may be larger than what the tokenizer names; `eos_tokens`: those that
        end an answer. Raises `CheckpointError` for a tokenizer of another kind."""
        self.size = size
        self.eos_tokens = eos_tokens
        definition = read_json(model_dir / "tokenizer.json")
        steps = _decoder_steps(definition)
        kinds = {step["type"] for step in steps}
        self.drops_first_space = any(s["type"] == "Strip" and s.get("start") and s["content"] == " " for s in steps)
        """SentencePiece's mark of a word's beginning is no space at the beginning of an answer."""
        if "ByteLevel" in kinds:
            self._bytes = _spelled_in_alphabet(definition["model"])
        elif "ByteFallback" in kinds:
            self._bytes = _spelled_with_fallback(definition["model"])
        else:
            raise CheckpointError("tokenizer.json: only byte-level and byte-fallback vocabularies are served")
        self._added = {int(entry["id"]): entry["content"].encode() for entry in definition["added_tokens"]}
        self._silent = {int(entry["id"]) for entry in definition["added_tokens"] if entry["special"]}

    def text_bytes(self, token: int) -> bytes:
        """What the token adds to an answer: nothing, if it is special."""
        return b"" if token in self._silent else self.spelling(token)

    def spelling(self, token: int) -> bytes:
        """What the token stands for; a special token's own name; nothing for ids without a meaning."""
        return self._added.get(token) or self._bytes.get(token, b"")


@dataclass(frozen=True, slots=True)
class End:
    reason: FinishReason
    stop_sequence: str | None = None


class Answer:
    """One answer as it grows, token by token."""

    def __init__(
        self, vocabulary: Vocabulary, params: SamplingParams, end_tokens: frozenset[int], max_tokens: int
    ) -> None:
        """`end_tokens`: those that end the answer and are not part of it."""
        self._vocabulary = vocabulary
        self._end_tokens = end_tokens
        self._max_tokens = max_tokens
        self._min_tokens = params.min_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = StopStrings(params.stop)
        self._num_decoded = 0
        """Characters that tokens have become."""
        self._num_shown = 0
        """Characters that were given out."""
        self._tokens_since_delta = 0
        self._untold: list[tuple[int, TokenLogprob]] = []
        """Log-probabilities not yet given out, each with the character at which its token began."""
        self._drops_space = vocabulary.drops_first_space
        self.num_tokens = 0

    def push(self, token: int, logprobs: Logprobs | None = None) -> tuple[TextDelta | None, End | None]:
        """Takes the next token; what can be shown now, and how the answer ended if it did."""
        self.num_tokens += 1
        self._tokens_since_delta += 1
        if token in self._end_tokens and self.num_tokens > self._min_tokens:
            return self._delta(self._flush(), ended=True), End("stop")
        if logprobs is not None:
            self._untold.append((self._num_decoded, self._told(token, logprobs)))
        text = self._decoder.decode(self._text_bytes(token))
        self._num_decoded += len(text)
        # Like vLLM: what is written before min_tokens is not looked at for stops.
        shown, stop = (text, None) if self.num_tokens < self._min_tokens else self._stops.push(text)
        if stop is not None:
            return self._delta(shown, ended=True, cut=True), End("stop", stop)
        if self.num_tokens < self._max_tokens:
            return self._delta(shown), None
        rest, stop = self._rest()
        return self._delta(shown + rest, ended=True, cut=stop is not None), End("stop" if stop else "length", stop)

    def _text_bytes(self, token: int) -> bytes:
        spelled = self._vocabulary.text_bytes(token)
        if spelled and self._drops_space:
            self._drops_space = False
            return spelled.removeprefix(b" ")
        return spelled

    def _flush(self) -> str:
        return self._rest()[0]

    def _rest(self) -> tuple[str, str | None]:
        """What was held back, now that nothing follows: half a character becomes U+FFFD, half a stop is just text."""
        tail = self._decoder.decode(b"", final=True)
        self._num_decoded += len(tail)
        shown, stop = self._stops.push(tail)
        return (shown, stop) if stop is not None else (shown + self._stops.flush(), None)

    def _delta(self, text: str, *, ended: bool = False, cut: bool = False) -> TextDelta | None:
        """The next delta, or None while there is nothing to show. With `cut`, tokens of the stop stay untold."""
        self._num_shown += len(text)
        told = self._untold if ended and not cut else [u for u in self._untold if u[0] < self._num_shown]
        if not text and not (ended and told):
            return None
        self._untold = self._untold[len(told) :]
        num_tokens, self._tokens_since_delta = self._tokens_since_delta, 0
        return TextDelta(text, num_tokens, tuple(logprob for _, logprob in told))

    def _told(self, token: int, logprobs: Logprobs) -> TokenLogprob:
        top = tuple(self._entry(t, value) for t, value in zip(logprobs.top_ids, logprobs.top, strict=True))
        return self._entry(token, logprobs.chosen, top)

    def _entry(self, token: int, logprob: float, top: Sequence[TokenLogprob] = ()) -> TokenLogprob:
        spelling = self._vocabulary.spelling(token)
        return TokenLogprob(spelling.decode(errors="replace"), logprob, tuple(spelling), tuple(top))


def _decoder_steps(definition: dict[str, Any]) -> list[dict[str, Any]]:
    decoder: dict[str, Any] = definition.get("decoder") or {"type": "none"}
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _spelled_in_alphabet(model: dict[str, Any]) -> dict[int, bytes]:
    alphabet = _byte_alphabet()
    return {
        number: bytes(alphabet[character] for character in token)
        for token, number in model["vocab"].items()
        if all(character in alphabet for character in token)
    }


def _spelled_with_fallback(model: dict[str, Any]) -> dict[int, bytes]:
    """`<0x0A>` is a byte; in other tokens U+2581 is a space. Source: tokenizers' `ByteFallback` and Llama's decoder."""
    vocab = model["vocab"]
    named = vocab.items() if isinstance(vocab, dict) else ((entry[0], i) for i, entry in enumerate(vocab))
    return {
        number: bytes([int(byte[1], 16)]) if (byte := _BYTE_TOKEN(token)) else token.replace("\u2581", " ").encode()
        for token, number in named
    }


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte. Source: `bytes_to_unicode` in OpenAI's GPT-2 `encoder.py`."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
