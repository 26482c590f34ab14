"""The process in which the wheel `xllamacpp` serves a model: llama.cpp's own server, in C++, behind a socket.

    python -m sightline.engines.llamacpp.host SOCKET SETUP

SETUP is a `Setup` as JSON. Runs until it is told to end.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import msgspec

from sightline.engines.llamacpp.launch import LOG_ERRORS, Setup


def main(socket: str, setup: str) -> None:
    # Blocked before the server's threads are made, which take it over: SIGTERM is this thread's, and ends it at once.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        import xllamacpp
    except ModuleNotFoundError:
        sys.exit("ERROR: the engine llamacpp needs the package 'xllamacpp': pip install 'sightline[llamacpp]'")
    try:
        server = xllamacpp.Server(to_params(xllamacpp, socket, msgspec.json.decode(setup, type=Setup)))
    except RuntimeError:
        sys.exit("ERROR: llama.cpp cannot load the model; it has said why")
    signal.sigwait({signal.SIGTERM})
    del server
    os._exit(0)


def to_params(xllamacpp: Any, socket: str, setup: Setup) -> Any:
    """xllamacpp's `CommonParams`: the same as the flags of launch.py."""
    params = xllamacpp.CommonParams()
    params.hostnames = [socket]
    params.model.path = setup.model
    if setup.mmproj is not None:
        params.mmproj.path = setup.mmproj
    params.n_ctx = setup.num_ctx
    params.n_parallel = setup.slots
    params.kv_unified = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = setup.threads
    params.n_threads_http = setup.http_threads
    if setup.n_gpu_layers is not None:
        params.n_gpu_layers = setup.n_gpu_layers
    params.cache_type_k = params.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{setup.kv_cache_type.upper()}")
    attention = {None: "AUTO", True: "ENABLED", False: "DISABLED"}[setup.flash_attention]
    params.flash_attn_type = getattr(xllamacpp.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{attention}")
    params.n_batch, params.n_ubatch = setup.batch_tokens, setup.ubatch_tokens
    if setup.image_tokens is not None:
        params.image_min_tokens, params.image_max_tokens = 1, setup.image_tokens
    params.sampling.penalty_last_n = -1
    params.cache_ram_mib, params.cache_idle_slots = 0, False
    params.ui = params.endpoint_slots = params.endpoint_metrics = params.endpoint_props = False
    params.prefill_assistant = False
    params.offline = True
    params.verbosity = LOG_ERRORS
    return params


if __name__ == "__main__":
    main(*sys.argv[1:])
