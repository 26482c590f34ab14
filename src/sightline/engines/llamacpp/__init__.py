"""llama.cpp: a GGUF file and its vision tower, behind llama.cpp's own server in a process that we start and watch.

    LlamaCppEngine (engine.py)   the `Engine`: what it may promise, and who may reuse whose prompt
        options.py               what the operator says; checked
        files.py                 which files of a directory; what they tell of the model
        schemas.py               which JSON schemas it may be given
        launch.py                how the server is set up: one table, as flags or as xllamacpp's parameters
        host.py                  the process: the wheel `xllamacpp`, which holds the server
    convert.py                   checkpoint -> GGUF

The server is `xllamacpp`'s or the operator's own `llama-server`. It listens on a Unix socket in a directory that is
ours alone, so it needs no key; `remote` speaks with it.
"""

from sightline.engines.llamacpp.engine import LlamaCppEngine

__all__ = ["LlamaCppEngine"]
