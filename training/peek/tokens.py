"""The vocabulary: byte-level BPE, small, and frozen in `tokenizer.json` next to this file.

Capitals and digits merge with nothing: a model that reads must spell. What it answers with, colours,
shapes, positions, is a single token each.

    python -m training.peek.tokens NEW_FILE     # learns another one; weights fit only their own
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from training.peek import talk, tasks, world

SPECIALS: Final = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
VOCABULARY: Final = 832
PATH: Final = Path(__file__).with_name("tokenizer.json")
SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's split pattern, letter for letter: some engines know it by heart."""

IM_START, IM_END, VISION_START, VISION_END, IMAGE_PAD = (
    VOCABULARY - len(SPECIALS) + SPECIALS.index(name)
    for name in ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
)


ANSWERS: Final = (
    *world.COLOURS, *world.SHAPES, *world.DIRECTIONS, "yes", "no", "top", "centre", "bottom", "above", "below",
    "gray", "color", "first", "second", "third", "fourth", "larger", "smaller", "largest", "smallest", "bar",
)  # fmt: skip
"""Each is one token, both with a space before it and without."""


def _corpus() -> list[str]:
    rng = np.random.default_rng(7)
    mixture, lines = tasks.Mixture(), list[str]()
    for _ in range(6000):
        scene = tasks.sample(rng, tasks.PICTURES, 6, 6)
        question = mixture.ask(rng, scene)
        lines += [question.text.lower(), question.answer.lower() if question.task == "describe" else question.answer]
    fixed = (talk.REFUSAL, talk.HELLO, talk.WELCOME, talk.WHO, *talk.GREETINGS, *talk.THANKS, *talk.WHOS, *talk.OUTSIDE)
    lines += [line for text in fixed for line in (text, text.lower())] * 20
    lines += ["You are a helpful assistant. You answer questions about pictures briefly."] * 60
    return lines + [f"{word} {word}" for word in ANSWERS] * 400 + ["user\n", "assistant\n", "system\n"] * 2000


def _spells(piece: str) -> bool:
    """Whether a piece holds a capital or a digit with anything else: a model that reads must spell."""
    return len(piece) > 1 and any(c in world.CHARACTERS for c in piece)


def _learned(vocabulary: int) -> list[tuple[str, str]]:
    """The merges of a byte-level BPE of about `vocabulary` tokens, without those that would hide spelling."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_corpus(), trainer)
    table = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(left, right) for left, right in table if not _spells(left + right)]


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def build() -> Tokenizer:
    """Learn the merges from the question corpus."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _learned(VOCABULARY + 200)[: VOCABULARY - len(SPECIALS) - len(alphabet)]
    pieces = dict.fromkeys([*alphabet, *(left + right for left, right in merges)])
    assert len(pieces) == VOCABULARY - len(SPECIALS), "two merges make the same piece: learn from another corpus"
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer


def load() -> Tokenizer:
    return Tokenizer.from_file(str(PATH))


def merges() -> list[tuple[str, str]]:
    """The merges of the frozen vocabulary, in order."""
    table = json.loads(PATH.read_text())["model"]["merges"]
    return [(left, right) for left, right in table]


if __name__ == "__main__":
    build().save(sys.argv[1])
