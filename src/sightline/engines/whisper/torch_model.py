"""Whisper on torch, by transformers' `WhisperForConditionalGeneration`: its two halves, not its `generate`, so that the
same recording is written down the same on every runtime.

Imports torch: only an engine that is being loaded imports this.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import WhisperForConditionalGeneration

from sightline.audio.mel import Mel
from sightline.engines.whisper.checkpoint import Facts
from sightline.engines.whisper.window import Decoding


class TorchWhisper:
    """A `SpeechModel`."""

    def __init__(self, model_dir: Path, facts: Facts, *, dtype: str, device: str, threads: int) -> None:
        """Raises `OSError` or `ValueError` when transformers cannot open the model."""
        if threads:
            torch.set_num_threads(threads)
        place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        kind = ("float16" if place == "cuda" else "float32") if dtype == "auto" else dtype
        self._model = WhisperForConditionalGeneration.from_pretrained(
            str(model_dir), dtype=getattr(torch, kind), attn_implementation="sdpa", local_files_only=True
        ).to(place)
        self._model.eval()
        self._place = torch.device(place)
        self._dtype = getattr(torch, kind)
        self._heads = facts.alignment_heads

    def encode(self, mel: Mel) -> Any:
        features = torch.from_numpy(np.ascontiguousarray(mel[None])).to(self._place, self._dtype)
        with torch.inference_mode():
            return self._model.model.encoder(features).last_hidden_state

    def decoding(self, heard: Any) -> Decoding:
        return _Decoding(self, heard)

    def attention(self, heard: Any, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        self._model.set_attn_implementation("eager")  # the others never make the weights
        try:
            output = self._run(heard, tokens, output_attentions=True, use_cache=False)
        finally:
            self._model.set_attn_implementation("sdpa")
        chosen = [output.cross_attentions[layer][0, head] for layer, head in self._heads]
        return np.asarray(torch.stack(chosen).float().cpu().numpy(), np.float32)

    def logits(self, heard: Any, tokens: Sequence[int], cache: Any) -> tuple[npt.NDArray[np.float32], Any]:
        """After each of `tokens`, which follow those in the cache; and the cache with them. None: nothing before."""
        output = self._run(heard, tokens, past_key_values=cache, use_cache=True)
        with torch.inference_mode():
            logits = self._model.proj_out(output.last_hidden_state)[0].float().cpu().numpy()
        return np.asarray(logits, np.float32), output.past_key_values

    def _run(self, heard: Any, tokens: Sequence[int], **how: Any) -> Any:
        with torch.inference_mode():
            return self._model.model.decoder(
                input_ids=torch.tensor([tokens], device=self._place), encoder_hidden_states=heard, **how
            )


class _Decoding:
    def __init__(self, model: TorchWhisper, heard: Any) -> None:
        self._model = model
        self._heard = heard
        self._cache: Any = None

    def step(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        logits, self._cache = self._model.logits(self._heard, tokens, self._cache)
        return logits
