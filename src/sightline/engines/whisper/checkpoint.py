"""What a Whisper checkpoint's files say, as Hugging Face lays them out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sightline.audio.mel import HOP, SAMPLE_RATE
from sightline.engines.checkpoint import CheckpointError, read_json

_MULTILINGUAL_VOCABULARY: Final = 51_865
"""The fewest tokens of OpenAI's models that know more than English."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of the model."""

    width: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    bands: int
    """Of the mel spectrogram."""
    source_positions: int
    """Places in the encoder's output: two mel frames each."""
    target_positions: int
    """Tokens in the decoder, prompt included."""
    vocabulary: int

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def frames(self) -> int:
        """Mel frames in a window."""
        return 2 * self.source_positions

    @property
    def window_samples(self) -> int:
        return self.frames * HOP

    @property
    def window_s(self) -> float:
        return self.window_samples / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Facts:
    shape: Shape
    suppressed: frozenset[int]
    """Tokens that are never said: brackets, notes, music."""
    suppressed_first: frozenset[int]
    """Tokens that a text does not begin with."""
    alignment_heads: tuple[tuple[int, int], ...]
    """Decoder layer and head, of those whose attention follows the sound."""
    is_multilingual: bool
    """False: it knows English only, and its transcripts do not begin with a language."""
    latest_start: int | None
    """The first segment of a window begins at most so many timestamps after it; None: anywhere."""


def read_facts(model_dir: Path) -> Facts:
    """Raises `CheckpointError` for what is not served, a missing key or an unreadable file."""
    config = read_json(model_dir / "config.json")
    file = model_dir / "generation_config.json"
    generation = read_json(file) if file.exists() else {}
    try:
        return _to_facts(config, generation)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"config.json, generation_config.json: {type(error).__name__}: {error}") from error


def _to_facts(config: dict[str, Any], generation: dict[str, Any]) -> Facts:
    if (heads := int(config["decoder_attention_heads"])) != int(config["encoder_attention_heads"]):
        raise CheckpointError("config.json: encoder and decoder have different numbers of heads, which is not served")
    if config.get("activation_function", "gelu") != "gelu" or config.get("scale_embedding", False):
        raise CheckpointError("config.json: only gelu, and embeddings that are not scaled, are served")
    shape = Shape(
        width=int(config["d_model"]),
        heads=heads,
        encoder_layers=int(config["encoder_layers"]),
        decoder_layers=int(config["decoder_layers"]),
        bands=int(config["num_mel_bins"]),
        source_positions=int(config["max_source_positions"]),
        target_positions=int(config["max_target_positions"]),
        vocabulary=int(config["vocab_size"]),
    )
    given = generation.get("alignment_heads")
    upper = range(shape.decoder_layers // 2, shape.decoder_layers)
    many = generation.get("is_multilingual", shape.vocabulary >= _MULTILINGUAL_VOCABULARY)
    latest = generation.get("max_initial_timestamp_index", 50)
    return Facts(
        shape,
        suppressed=_ids(generation.get("suppress_tokens", config.get("suppress_tokens"))),
        suppressed_first=_ids(generation.get("begin_suppress_tokens", config.get("begin_suppress_tokens"))),
        # OpenAI's choice for a model of whose heads nothing is known: all in the upper half.
        alignment_heads=tuple((int(layer), int(head)) for layer, head in given)
        if given
        else tuple((layer, head) for layer in upper for head in range(heads)),
        is_multilingual=bool(many),
        latest_start=None if latest is None else int(latest),
    )


def _ids(tokens: list[int] | None) -> frozenset[int]:
    return frozenset(int(token) for token in tokens or () if token >= 0)
