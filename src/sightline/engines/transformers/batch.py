"""The model's forward pass: a prompt alone, then steps of all sequences that run.

Keys and values of the running sequences lie in one cache, padded on the left to the longest: the newest token of each
stands in the last column, so a step appends one column. A sequence joins and leaves between steps; a copy of the cache
then, and transformers' own append in every step, cost what reading it for attention costs.

Positions are given explicitly, because padding must not count and because M-RoPE families (Qwen2-VL and its kin) number
what follows a picture by its sides, not by its tokens: the distance is read from the model after each prefill.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from sightline.engines.checkpoint import CheckpointError
from sightline.engines.transformers.prompt import Prompt

Logits = npt.NDArray[np.float32]
_KINDS: Final = ("mm_token_type_ids", "token_type_ids")
"""Names under which families take which tokens are of pictures."""


@dataclass(slots=True, eq=False)
class Row:
    """A running sequence."""

    length: int
    """Tokens in the cache."""
    offset: int
    """Its next position less its length: M-RoPE's delta, else 0."""


class Runner:
    """A model and the cache of what runs on it. Used from one thread."""

    def __init__(self, model: Any) -> None:
        """Raises `CheckpointError` for a model that keeps anything but keys and values of every token."""
        self._model = model
        self._device = model.get_input_embeddings().weight.device
        self._parameters = set(inspect.signature(model.forward).parameters)
        self._mrope = [module for module in model.modules() if hasattr(module, "rope_deltas")]
        self._rows: list[Row] = []
        self._cache: Any = DynamicCache()
        cache, logits = self._forward_alone([0], [0], {})
        self.vocab_size = int(logits.shape[-1])
        if not all(type(layer) is DynamicLayer and layer.get_seq_length() == 1 for layer in cache.layers):
            raise CheckpointError("this architecture keeps other state than keys and values, which cannot be batched")

    def prefill(self, prompt: Prompt) -> tuple[Row, Any, Logits]:
        """Runs a prompt: its row, which does not run yet, its keys and values, and logits after it [vocabulary]."""
        cache, logits = self._forward_alone(prompt.tokens, prompt.kinds, prompt.pictures)
        return Row(len(prompt.tokens), self._offset()), cache, logits

    def join(self, row: Row, cache: Any) -> None:
        """From the next step on the row runs with the others."""
        width, longest = max((r.length for r in self._rows), default=0), row.length
        if not self._rows:
            self._cache = cache
        else:
            for mine, new in zip(self._cache.layers, cache.layers, strict=True):
                mine.keys = torch.cat([_widened(mine.keys, longest - width), _widened(new.keys, width - longest)])
                mine.values = torch.cat([_widened(mine.values, longest - width), _widened(new.values, width - longest)])
        self._rows.append(row)

    def leave(self, row: Row) -> None:
        """Frees the row's keys and values, and padding that only it made necessary."""
        kept = [i for i, other in enumerate(self._rows) if other is not row]
        self._rows = [self._rows[i] for i in kept]
        if not kept:
            self._cache = DynamicCache()
            return
        width = max(r.length for r in self._rows)
        chosen = torch.tensor(kept, device=self._device)
        for layer in self._cache.layers:
            rows = chosen.to(layer.keys.device)
            layer.keys = layer.keys[rows, :, -width:].contiguous()
            layer.values = layer.values[rows, :, -width:].contiguous()

    def step(self, tokens: list[int]) -> Logits:
        """A token for each running row, in the order in which they joined; logits after it [rows, vocabulary]."""
        lengths = torch.tensor([row.length for row in self._rows], device=self._device)
        width = int(lengths.max()) + 1
        mask = (torch.arange(width, device=self._device) >= width - 1 - lengths[:, None]).long()
        positions = (lengths + torch.tensor([row.offset for row in self._rows], device=self._device))[:, None]
        if self._mrope:
            positions = positions.expand(3, -1, -1)
        with torch.inference_mode():
            out = self._model(
                input_ids=torch.tensor(tokens, device=self._device)[:, None],
                attention_mask=mask,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
            )
        for row in self._rows:
            row.length += 1
        return _to_numpy(out.logits[:, -1])

    def forget(self) -> None:
        """Nothing runs any more: after a step that failed, what is in the cache is not to be trusted."""
        self._rows, self._cache = [], DynamicCache()

    def _forward_alone(self, tokens: list[int], kinds: list[int], pictures: dict[str, Any]) -> tuple[Any, Logits]:
        for module in self._mrope:
            module.rope_deltas = None  # else another prompt's would be taken for this one's
        ids = torch.tensor([tokens], device=self._device)
        inputs: dict[str, Any] = {name: torch.tensor([kinds], device=self._device) for name in self._takes(*_KINDS)}
        inputs |= dict.fromkeys(self._takes("logits_to_keep"), 1)
        inputs |= {name: self._placed(tensor) for name, tensor in pictures.items()}
        cache = DynamicCache()
        with torch.inference_mode():
            out = self._model(
                input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True, **inputs
            )
        return cache, _to_numpy(out.logits[0, -1])

    def _takes(self, *names: str) -> list[str]:
        return [name for name in names if name in self._parameters]

    def _placed(self, tensor: Any) -> Any:
        dtype = self._model.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self._device, dtype)

    def _offset(self) -> int:
        deltas = [int(module.rope_deltas.item()) for module in self._mrope if module.rope_deltas is not None]
        return deltas[0] if deltas else 0


def _widened(tensor: Any, columns: int) -> Any:
    """[rows, heads, tokens, values], with so many columns of zeros on the left (fewer than one: none)."""
    return pad(tensor, (0, 0, columns, 0)) if columns > 0 else tensor


def _to_numpy(logits: Any) -> Logits:
    values: Logits = logits.float().cpu().numpy()
    return values
