"""The compiled models and their tensors: a batch of pieces of sequences in, logits of the wanted positions out.

The language model comes as Optimum exports it, with keys and values as hidden state for one batch; a transformation of
OpenVINO's turns that into attention over a pool of blocks, so that sequences can join and leave between steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops

# Private, which is why pyproject pins OpenVINO to one minor release; a test imports it.
from openvino._offline_transformations import paged_attention_transformation

from sightline.engines.checkpoint import CheckpointError
from sightline.engines.openvino import files

# The inputs we add to the language model.
_TOKENS: Final = "token_ids"
"""[1, tokens] i64."""
_PICTURE_ROWS: Final = "picture_rows"
"""[picture tokens] i32: which rows of the batch are a picture's."""
_PICTURES: Final = "picture_embeddings"
"""[picture tokens, hidden] f32."""
_WANTED: Final = "wanted_rows"
"""[rows] i32: which rows of the batch go through the vocabulary projection."""

_SMALL_BYTES: Final = 32 * 2**20
"""Up to here a step is so short that a second thread mostly waits for the first: with 7 MB of weights a decoded token
took 4.7 ms of CPU time on two threads, 2.6 on one. So the other cores stay free."""

Tokens = npt.NDArray[np.int64]
Embeddings = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LoadedModels:
    language: Any
    """An `openvino.CompiledModel`, like the others; from token ids and picture embeddings, with paged attention."""
    vision_patches: Any
    vision_merger: Any
    weights_digest: str
    """`sha256:<hex>` of the bytes that the language model's weights were read from."""
    weights: Sequence[Any]
    """The mapped files: constants may lie in them, so they live as long as the models."""


def load_models(
    model_dir: Path,
    *,
    weights: files.Weights = "fp16",
    kv_cache_precision: str,
    inference_precision: str,
    num_threads: int,
    told: Callable[[float], None] = lambda progress: None,
) -> LoadedModels:
    """Reads and compiles the four models side by side. `num_threads`: of the CPU, 0 for what suits the model. `told`
    hears, from any thread, what part of the weights is compiled, 0..1.

    Raises `CheckpointError` when a file is missing, `RuntimeError` from OpenVINO when one cannot be read or compiled.
    """
    directory = files.ir_directory(model_dir, weights)
    for name in files.MODELS:
        for path in (directory / name, (directory / name).with_suffix(".bin")):
            if not path.exists():
                how = "export --int8" if weights == "int8" else "export"
                missing = path.relative_to(model_dir)
                raise CheckpointError(f"{missing} is missing; `python -m sightline.engines.openvino.{how}` makes it")
    core = ov.Core()
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": inference_precision,
        "KV_CACHE_PRECISION": kv_cache_precision,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    mapped = {name: np.memmap((directory / name).with_suffix(".bin"), np.uint8, "r") for name in files.MODELS}

    def read(name: str) -> Any:
        return core.read_model((directory / name).read_text(encoding="utf-8"), ov.Tensor(mapped[name]))

    def language() -> Any:
        model = read(files.LANGUAGE)
        paged_attention_transformation(model)
        _embed_inside(model, read(files.TEXT_EMBEDDINGS))
        _project_only_wanted(model)
        small = mapped[files.LANGUAGE].nbytes < _SMALL_BYTES
        return core.compile_model(model, "CPU", options | _threads(num_threads or (1 if small else 0)))

    def vision(name: str) -> Any:
        return core.compile_model(read(name), "CPU", options | _threads(num_threads))

    compiled = set[str]()

    def counted(name: str, compile_: Callable[[], Any]) -> Any:
        model = compile_()
        compiled.update({name, files.TEXT_EMBEDDINGS} if name == files.LANGUAGE else {name})
        told(sum(mapped[n].nbytes for n in compiled) / sum(m.nbytes for m in mapped.values()))
        return model

    with ThreadPoolExecutor() as pool:
        compiled_language = pool.submit(counted, files.LANGUAGE, language)
        compiled_patches, compiled_merger = (
            pool.submit(counted, n, partial(vision, n)) for n in (files.VISION_PATCHES, files.VISION_MERGER)
        )
        digest = pool.submit(lambda: hashlib.sha256(mapped[files.LANGUAGE].data).hexdigest())
        return LoadedModels(
            language=compiled_language.result(),
            vision_patches=compiled_patches.result(),
            vision_merger=compiled_merger.result(),
            weights_digest=f"sha256:{digest.result()}",
            weights=tuple(mapped.values()),
        )


def _threads(count: int) -> dict[str, int]:
    return {"INFERENCE_NUM_THREADS": count} if count else {}


def _embed_inside(model: Any, text_embeddings: Any) -> None:
    """Puts the text embeddings in front of the language model, and pictures' embeddings in their rows: one inference
    for a step, and nothing to copy in Python."""
    tokens = text_embeddings.input(0).get_node()
    _name(tokens, _TOKENS)
    embedded = text_embeddings.output(0).get_node().input_value(0)
    hidden = embedded.get_partial_shape()[-1].get_length()
    rows, pictures = (
        _name(ops.parameter([-1], np.int32), _PICTURE_ROWS),
        _name(ops.parameter([-1, hidden], np.float32), _PICTURES),
    )
    flat = ops.reshape(embedded, ops.constant(np.array([-1, hidden], np.int64)), special_zero=False)
    mixed = ops.scatter_update(flat, rows, pictures, ops.constant(np.int64(0)))
    embeds = model.input("inputs_embeds").get_node()
    for target in embeds.output(0).get_target_inputs():
        target.replace_source_output(mixed.output(0))
    model.remove_parameter(embeds)
    model.add_parameters([tokens, rows, pictures])


def _project_only_wanted(model: Any) -> None:
    """Gathers rows before the vocabulary projection: of a prompt, only the last position's logits are read, and the
    projection of the others would be a fifth of the work."""
    projection = model.output("logits").get_node().input_value(0).get_node()
    while projection.get_type_name() in ("Convert", "Reshape", "Multiply"):
        projection = projection.input_value(0).get_node()
    if projection.get_type_name() != "MatMul":
        raise CheckpointError("the language model does not end in a vocabulary projection")
    wanted = _name(ops.parameter([-1], np.int32), _WANTED)
    rows = ops.gather(projection.input_value(0), wanted, ops.constant(np.int64(0)))
    projection.input(0).replace_source_output(rows.output(0))
    model.add_parameters([wanted])
    model.validate_nodes_and_infer_types()


def _name(parameter: Any, name: str) -> Any:
    parameter.set_friendly_name(name)
    parameter.output(0).set_names({name})
    return parameter


@dataclass(frozen=True, slots=True)
class Piece:
    """Some consecutive tokens of one sequence."""

    tokens: Sequence[int]
    pictures: Sequence[tuple[int, Embeddings]]
    """Embeddings [picture tokens, hidden] that stand in the place of tokens, and where among `tokens` each begins."""
    positions: Tokens
    """[3, tokens]."""
    num_past: int
    """Tokens of the sequence that are already in its blocks."""
    blocks: Sequence[int]
    """Of the whole sequence so far, room for these tokens included."""
    wants_logits: bool
    """Of its last token."""


class LanguageRunner:
    """The language model and its pool of KV blocks. Used by one thread."""

    def __init__(self, models: LoadedModels, *, context_length: int, max_sequences: int, cache_bytes: int) -> None:
        """Takes blocks for `max_sequences` full contexts, or what fits into `cache_bytes`, but for one at least."""
        self._request = models.language.create_infer_request()
        hidden = models.language.input(_PICTURES).get_partial_shape()[1].get_length()
        self._no_rows, self._no_pictures = np.empty(0, np.int32), np.empty((0, hidden), np.float32)
        caches = {
            port.get_any_name(): port
            for port in models.language.inputs
            if port.get_any_name().startswith(("key_cache.", "value_cache."))
        }
        if not caches:
            raise CheckpointError("the language model has no attention that can be paged")
        shapes = {name: [d.get_length() for d in list(p.get_partial_shape())[1:]] for name, p in caches.items()}
        # With KV_CACHE_PRECISION u8 scales ride along in the last dimensions, but keys and values always lie in rows of
        # tokens: 32 of them on today's CPU plugin.
        self.block_size: int = shapes["value_cache.0"][1]
        types = {name: port.get_element_type().to_dtype() for name, port in caches.items()}
        block_bytes = sum(int(np.prod(shapes[name])) * types[name].itemsize for name in caches)
        blocks_each = -(-context_length // self.block_size)
        self.num_blocks = max(blocks_each, min(max_sequences * blocks_each, cache_bytes // block_bytes))
        # np.zeros maps pages when they are first written: an idle pool costs nothing.
        self._caches = [np.zeros((self.num_blocks, *shapes[name]), types[name]) for name in caches]
        for name, cache in zip(caches, self._caches, strict=True):
            self._request.set_tensor(name, ov.Tensor(cache, shared_memory=True))

    def forward(self, pieces: Sequence[Piece]) -> npt.NDArray[np.float32]:
        """Computes the pieces in one step and writes their keys and values to their blocks.

        Gives logits [pieces that want them, vocabulary], in order. Raises `RuntimeError` from OpenVINO.
        """
        begins = np.cumsum([0, *(len(p.tokens) for p in pieces)])
        ends = begins[1:]
        lengths = [p.num_past + len(p.tokens) for p in pieces]
        used = [-(-length // self.block_size) for length in lengths]
        pictures = [
            (begin + place, picture)
            for p, begin in zip(pieces, begins[:-1], strict=True)
            for place, picture in p.pictures
        ]
        inputs: Mapping[str, npt.NDArray[Any]] = {
            _TOKENS: np.array([[token for p in pieces for token in p.tokens]], np.int64),
            _PICTURE_ROWS: np.concatenate(
                [self._no_rows, *(np.arange(row, row + len(picture), dtype=np.int32) for row, picture in pictures)]
            ),
            _PICTURES: np.concatenate([self._no_pictures, *(picture for _, picture in pictures)]),
            "position_ids": np.concatenate([p.positions for p in pieces], axis=1),
            "past_lens": np.array([p.num_past for p in pieces], np.int32),
            "subsequence_begins": begins.astype(np.int32),
            "block_indices": np.array([b for p, n in zip(pieces, used, strict=True) for b in p.blocks[:n]], np.int32),
            "block_indices_begins": np.array([0, *np.cumsum(used)], np.int32),
            "max_context_len": np.array(max(lengths), np.int32),
            _WANTED: np.array([end - 1 for p, end in zip(pieces, ends, strict=True) if p.wants_logits], np.int32),
        }
        outputs = self._request.infer(inputs, share_inputs=True)
        logits: npt.NDArray[np.float32] = np.array(outputs[0], np.float32)
        return logits.reshape(-1, logits.shape[-1])
