"""Tokens to text, and when an answer ends.

Text is given out when it is final: whole UTF-8 characters, and nothing that could still become a stop string.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from sightline.engines.checkpoint import CheckpointError, read_json
from sightline.engines.sampler import Logprobs
from sightline.engines.stops import StopStrings
from sightline.engines.tool_calls import Piece, ToolCalls, new_call_id
from sightline.types import Delta, FinishReason, SamplingParams, TextDelta, TokenLogprob, ToolCallDelta

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
        self.added = {int(entry["id"]): entry["content"].encode() for entry in definition["added_tokens"]}
        self._silent = {int(entry["id"]) for entry in definition["added_tokens"] if entry["special"]}

    def text_bytes(self, token: int) -> bytes:
        """What the token adds to an answer: nothing, if it is special."""
        return b"" if token in self._silent else self.spelling(token)

    def tokens_of(self, texts: Iterable[str]) -> frozenset[int]:
        """Those of the texts that are added tokens."""
        wanted = {text.encode() for text in texts}
        return frozenset(token for token, spelled in self.added.items() if spelled in wanted)

    def spelling(self, token: int) -> bytes:
        """What the token stands for; a special token's own name; nothing for ids without a meaning."""
        return self.added.get(token) or self._bytes.get(token, b"")


@dataclass(frozen=True, slots=True)
class End:
    reason: FinishReason
    stop_sequence: str | None = None


class Answer:
    """One answer as it grows, token by token."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        params: SamplingParams,
        end_tokens: frozenset[int],
        max_tokens: int,
        calls: ToolCalls | None = None,
    ) -> None:
        """`end_tokens`: those that end the answer and are not part of it. `calls`: finds calls of tools in the text;
        None: all of it is words."""
        self._vocabulary = vocabulary
        self._end_tokens = end_tokens
        self._max_tokens = max_tokens
        self._min_tokens = params.min_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = StopStrings(params.stop)
        self._calls = calls
        self._audible = frozenset() if calls is None else vocabulary.tokens_of(calls.markers)
        """Special tokens that are text here: they say where a call begins."""
        self._num_decoded = 0
        """Characters that tokens have become."""
        self._num_shown = 0
        """Characters that were given out."""
        self._tokens_since_delta = 0
        self._untold: list[tuple[int, TokenLogprob]] = []
        """Log-probabilities not yet given out, each with the character at which its token began."""
        self._drops_space = vocabulary.drops_first_space
        self.num_tokens = 0

    def push(
        self, token: int, logprobs: Logprobs | None = None, *, is_last: bool = False
    ) -> tuple[list[Delta], End | None]:
        """Takes the next token; what can be shown now, and how the answer ended if it did. `is_last`: nothing may
        follow, because what the answer must look like is complete."""
        self.num_tokens += 1
        self._tokens_since_delta += 1
        if token in self._end_tokens and (is_last or self.num_tokens > self._min_tokens):
            return self._deltas(self._rest()[0], ended=True), self._end("stop")
        if logprobs is not None:
            self._untold.append((self._num_decoded, self._told(token, logprobs)))
        text = self._decoder.decode(self._text_bytes(token))
        self._num_decoded += len(text)
        # Like vLLM: what is written before min_tokens is not looked at for stops.
        shown, stop = (text, None) if self.num_tokens < self._min_tokens else self._stops.push(text)
        if stop is not None:
            return self._deltas(shown, ended=True, cut=True), self._end("stop", stop)
        if is_last or self.num_tokens >= self._max_tokens:
            rest, stop = self._rest()
            deltas = self._deltas(shown + rest, ended=True, cut=stop is not None)
            return deltas, self._end("stop" if stop is not None or is_last else "length", stop)
        deltas = self._deltas(shown)
        return deltas, self._end("stop") if self._calls is not None and self._calls.is_done else None

    def _end(self, reason: FinishReason, stop: str | None = None) -> End:
        called = self._calls is not None and self._calls.num_calls > 0
        return End("tool_calls" if called and reason == "stop" else reason, stop)

    def _text_bytes(self, token: int) -> bytes:
        vocabulary = self._vocabulary
        spelled = vocabulary.spelling(token) if token in self._audible else vocabulary.text_bytes(token)
        if spelled and self._drops_space:
            self._drops_space = False
            return spelled.removeprefix(b" ")
        return spelled

    def _rest(self) -> tuple[str, str | None]:
        """What was held back, now that nothing follows: half a character becomes U+FFFD, half a stop is just text."""
        tail = self._decoder.decode(b"", final=True)
        self._num_decoded += len(tail)
        shown, stop = self._stops.push(tail)
        return (shown, stop) if stop is not None else (shown + self._stops.flush(), None)

    def _deltas(self, text: str, *, ended: bool = False, cut: bool = False) -> list[Delta]:
        """What is to be shown now. With `cut`, tokens of the stop stay untold."""
        if self._calls is None:
            pieces = [Piece("words", text, len(text))] if text else []
        else:
            pieces = self._calls.push(text) + (self._calls.flush() if ended else [])
        deltas = [delta for delta in map(self._delta, pieces) if delta is not None]
        if ended and not cut and self._untold:  # the last tokens had no text of their own
            told, self._untold = self._untold, []
            deltas.append(self._counted(TextDelta("", logprobs=tuple(logprob for _, logprob in told))))
        return deltas

    def _delta(self, piece: Piece) -> Delta | None:
        self._num_shown += piece.num_characters
        count = sum(begin < self._num_shown for begin, _ in self._untold)
        told, self._untold = self._untold[:count], self._untold[count:]
        match piece.kind:
            case "words":
                return self._counted(TextDelta(piece.text, logprobs=tuple(logprob for _, logprob in told)))
            case "call":
                return self._counted(ToolCallDelta(piece.call, id=new_call_id(), name=piece.text))
            case "arguments":
                return self._counted(ToolCallDelta(piece.call, piece.text))
            case _:
                return None

    def _counted(self, delta: TextDelta | ToolCallDelta) -> Delta:
        num_tokens, self._tokens_since_delta = self._tokens_since_delta, 0
        return replace(delta, num_tokens=num_tokens)

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
