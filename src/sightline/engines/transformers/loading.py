"""From a directory to a model in memory: safetensors only, nothing downloaded, no code of the checkpoint's own unless
the operator says so."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from sightline.engines.checkpoint import CheckpointError
from sightline.engines.transformers.batch import Runner
from sightline.engines.transformers.pictures import Pictures

if TYPE_CHECKING:
    from sightline.engines.transformers import Options


@dataclass(frozen=True, slots=True)
class Loaded:
    runner: Runner
    pictures: Pictures
    tokenizer: Any
    context_length: int
    eos_token_ids: frozenset[int]
    weights_digest: str | None


def load(model_dir: Path, options: Options, told: Callable[[float], None] = lambda progress: None) -> Loaded:
    """`told` hears what part of the weights is loaded, 0..1.

    Raises `CheckpointError` for what cannot be served, and `OSError` and `ValueError` as transformers does.
    """
    device = _device(options)
    if options.quantization != "none":
        _refuse_quantization_without(device)
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    pictures = Pictures(model_dir, trust_remote_code=options.trust_remote_code)
    with _watched(told):
        model = transformers.AutoModelForImageTextToText.from_pretrained(model_dir, **_arguments(options, device))
    if getattr(model, "hf_device_map", None) is None:
        model.to(device)
    model.eval()
    return Loaded(
        Runner(model),
        pictures,
        pictures.processor.tokenizer,
        int(model.config.get_text_config().max_position_embeddings),
        _eos_token_ids(model),
        _digest(model_dir),
    )


@contextmanager
def _watched(told: Callable[[float], None]) -> Iterator[None]:
    """Counts the tensors over which transformers shows a progress bar; an older one has no hook, and tells nothing."""
    logging = transformers.utils.logging
    if not hasattr(logging, "set_tqdm_hook"):
        yield
        return

    def make(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bar = factory(*args, **kwargs)
        return _Counting(bar, args[0], told) if args and isinstance(args[0], Sized) else bar

    before = logging.set_tqdm_hook(make)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


class _Counting:
    """A progress bar that tells how far the loop over it is."""

    def __init__(self, bar: Any, items: Any, told: Callable[[float], None]) -> None:
        self._bar = bar
        self._items = items
        self._told = told

    def __iter__(self) -> Iterator[Any]:
        for number, item in enumerate(self._items, start=1):
            yield item
            self._told(number / len(self._items))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)


def _arguments(options: Options, device: str) -> dict[str, Any]:
    dtype: Any = "auto" if options.dtype == "auto" else getattr(torch, options.dtype)
    arguments: dict[str, Any] = {
        "dtype": torch.float32 if dtype == "auto" and device == "cpu" else dtype,
        "local_files_only": True,
        "use_safetensors": True,
        "trust_remote_code": options.trust_remote_code,
    }
    if options.attn_implementation != "auto":
        arguments["attn_implementation"] = options.attn_implementation
    if device == "cuda" and options.device == "auto" and torch.cuda.device_count() > 1:
        arguments["device_map"] = "auto"
    if options.quantization != "none":
        arguments["device_map"] = arguments.get("device_map", {"": "cuda"})
        arguments["quantization_config"] = _quantization(options)
    return arguments


def _quantization(options: Options) -> Any:
    """NF4 with doubly quantised scales (Dettmers et al., arXiv:2305.14314), or LLM.int8() (arXiv:2208.07339)."""
    if options.quantization == "bitsandbytes-8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.bfloat16 if options.dtype == "auto" else getattr(torch, options.dtype)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )


def _device(options: Options) -> str:
    if options.device == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if options.device == "cuda":
        raise CheckpointError("device is cuda, but torch finds no CUDA GPU here; use device: cpu")
    return "cpu"


def _refuse_quantization_without(device: str) -> None:
    if device != "cuda":
        raise CheckpointError("quantization with bitsandbytes needs a CUDA GPU, and this model is to run on the CPU")
    for package in ("bitsandbytes", "accelerate"):
        if find_spec(package) is None:
            raise CheckpointError(f"quantization needs the package {package}: pip install bitsandbytes accelerate")


def _eos_token_ids(model: Any) -> frozenset[int]:
    eos = model.generation_config.eos_token_id
    eos = model.config.get_text_config().eos_token_id if eos is None else eos
    return frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])


def _digest(model_dir: Path) -> str | None:
    """Of the weights, where they are one file."""
    files = list(model_dir.glob("*.safetensors"))
    if len(files) != 1:
        return None
    with files[0].open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
