"""The tokenizer: byte-level BPE over our few words, and Whisper's special tokens behind it in Whisper's order."""

from __future__ import annotations

import random
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from training.whisper.words import SPOKEN

WINDOW_S: Final = 10
"""Seconds a model hears at once. Whisper's is 30; a third of it is a third of the work."""
TIMESTAMP_S: Final = 0.02
TIMESTAMPS: Final = round(WINDOW_S / TIMESTAMP_S) + 1
SPECIAL: Final = (
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|es|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>",
    "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
)  # fmt: skip


def build() -> Tokenizer:
    """The same every time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + 110,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    times = [f"<|{index * TIMESTAMP_S:.2f}|>" for index in range(TIMESTAMPS)]
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in times])
    return tokenizer


def _corpus() -> list[str]:
    rng = random.Random(1)
    words = [*SPOKEN["en"], *SPOKEN["es"], *map(str, range(10))]
    return [" " + " ".join(rng.choices(words, k=8)) for _ in range(400)]
