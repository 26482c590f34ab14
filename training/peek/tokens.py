"""The vocabulary: byte-level BPE, small, and frozen in `tokenizer.json` next to this file.

Version 1 reads words and charts with the same vocabulary, so the merges are learned from its
phrases too. Capitals and digits never merge with each other: a model that reads must spell.

    python -m training.peek.tokens NEW_FILE     # learns another one; weights fit only their own
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from training.peek import questions, world

SPECIALS: Final = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
VOCABULARY: Final = 608
PATH: Final = Path(__file__).with_name("tokenizer.json")
SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's split pattern, letter for letter: some engines know it by heart."""

REFUSAL: Final = "I can only see simple shapes, charts and short text."
LATER: Final = (
    REFUSAL,
    "Hello! I look at pictures of simple shapes, charts and short text.",
    "Hello, how are you? Hi there! Who are you? What can you do? Good morning. Thank you, thanks!",
    "You are welcome. I am a small model that looks at pictures. Ask me about a picture.",
    "Read the text. What does the text say? What word is written? Which letters do you see? What is written here?",
    "Which word is on the first line? What is the second line? What number is shown? Read the word in the picture.",
    "Which bar is tallest? Which bar is the shortest? What is the value of bar B? What value is printed above the bar?",
    "How high is the bar called A? Name the tallest bar in the chart. "
    "What is the title of the chart? the highest value",
    "Is the circle larger than the square? Which is larger, the ring or the star? Which shape is smaller? bigger",
    "Is the arrow left of the cross? What is above the triangle? What is below the diamond? to the right of",
    "the third picture, the fourth picture, four pictures, the last image, both pictures, neither, none",
    "You are a helpful assistant. You answer questions about pictures briefly.",
)

IM_START, IM_END, VISION_START, VISION_END, IMAGE_PAD = (
    VOCABULARY - len(SPECIALS) + SPECIALS.index(name)
    for name in ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
)


def _corpus() -> list[str]:
    rng = np.random.default_rng(7)
    lines: list[str] = []
    for _ in range(4000):
        scene, other = (world.sample_scene(rng, 6, 6) for _ in range(2))
        for question in (questions.ask_any(rng, scene), questions.ask_pair(rng, scene, other)):
            if not question.text.isupper():
                lines += [question.text, question.answer]
    return lines + [*LATER] * 60 + ["user\n", "assistant\n", "system\n"] * 2000


def build() -> Tokenizer:
    """Learn the merges from the question corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
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
