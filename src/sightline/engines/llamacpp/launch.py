"""How the server is set up: one table, as flags of `llama-server` or as xllamacpp's parameters (host.py).

Against llama.cpp's defaults: nothing but answers is served (no page, no slots, no metrics, nothing to set), nothing is
looked for on the network, penalties look at the whole context and not at 64 tokens, an answer is a turn of its own even
after the assistant's, and prompts are not kept in 8 GiB of memory.
"""

from __future__ import annotations

import sys

import msgspec

from sightline.engines.llamacpp.files import ModelFiles
from sightline.engines.llamacpp.options import LlamaCppOptions
from sightline.images.budget import CellBudget, VisionBudget

LOG_ERRORS = 1
"""Its warnings are of prompts that are reused and of a lack of a key."""

_SPARE_CONNECTIONS = 16
"""For counting and looking; a connection holds a thread of the server's for as long as it is open."""
_DEFAULT_CONTEXT = 8192


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """Passed to the child as JSON."""

    model: str
    mmproj: str | None
    slots: int
    num_ctx: int
    """Of all slots together."""
    threads: int
    """-1: llama.cpp's choice."""
    n_gpu_layers: int | None
    kv_cache_type: str
    flash_attention: bool | None
    batch_tokens: int
    ubatch_tokens: int
    image_tokens: int | None
    """The most that a picture costs; with it a served picture is not resized again. None: as the tower has it."""

    @property
    def http_threads(self) -> int:
        return self.slots + _SPARE_CONNECTIONS


def to_setup(
    files: ModelFiles, options: LlamaCppOptions, *, slots: int, longest: int | None, budget: VisionBudget | None
) -> Setup:
    """`longest`: the model's own context; `budget`: how it is given pictures."""
    context = options.context_length or min(longest or _DEFAULT_CONTEXT, _DEFAULT_CONTEXT)
    return Setup(
        model=str(files.model.absolute()),
        mmproj=str(files.mmproj.absolute()) if files.mmproj is not None else None,
        slots=slots,
        num_ctx=context * slots,
        threads=options.threads or -1,
        n_gpu_layers=options.n_gpu_layers,
        kv_cache_type=options.kv_cache_type,
        flash_attention=options.flash_attention,
        batch_tokens=options.batch_tokens,
        ubatch_tokens=min(options.ubatch_tokens, options.batch_tokens),
        image_tokens=budget.largest_tokens if isinstance(budget, CellBudget) else None,
    )


def to_command(setup: Setup, socket: str, executable: str | None) -> list[str]:
    """`socket`: a path that ends in `.sock`, by which llama.cpp knows one from a host."""
    if executable is None:
        return [sys.executable, "-m", "sightline.engines.llamacpp.host", socket, msgspec.json.encode(setup).decode()]
    return [executable, "--host", socket, *_flags(setup)]


def _flags(setup: Setup) -> list[str]:
    attention = {None: "auto", True: "on", False: "off"}[setup.flash_attention]
    flags = {
        "--model": setup.model,
        "--mmproj": setup.mmproj,
        "--ctx-size": setup.num_ctx,
        "--parallel": setup.slots,
        "--threads": setup.threads,
        "--threads-http": setup.http_threads,
        "--n-gpu-layers": setup.n_gpu_layers,
        "--cache-type-k": setup.kv_cache_type,
        "--cache-type-v": setup.kv_cache_type,
        "--flash-attn": attention,
        "--batch-size": setup.batch_tokens,
        "--ubatch-size": setup.ubatch_tokens,
        "--image-min-tokens": 1 if setup.image_tokens is not None else None,
        "--image-max-tokens": setup.image_tokens,
        "--repeat-last-n": -1,
        "--cache-ram": 0,
        "--verbosity": LOG_ERRORS,
    }
    switches = [
        "--no-kv-unified",
        "--no-webui",
        "--no-slots",
        "--no-cache-idle-slots",
        "--offline",
        "--jinja",
        "--no-prefill-assistant",
    ]
    return [word for name, value in flags.items() if value is not None for word in (name, str(value))] + switches
