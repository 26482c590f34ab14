"""Where a model is: what `source` means, which engine takes what, and where a model hub's copy lies."""

from __future__ import annotations

import re
from pathlib import Path

from sightline.config import PEEK, ModelConfig
from sightline.engines.table import EngineEntry, SourceKind
from sightline.errors import EngineUnavailable, InvalidRequest

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WORDS: dict[SourceKind, str] = {
    "directory": "a directory",
    "gguf": "a GGUF file",
    "hub": "the id of a model on Hugging Face's hub (ORGANISATION/NAME)",
    "name": "a name that it knows",
}
_HINTS: dict[SourceKind, str] = {
    "gguf": "Serve it with the engine llamacpp.",
    "hub": "Serve it with the engine transformers or vllm; or download it, and name the directory.",
    "directory": "",
}


def kind_of(source: str) -> SourceKind:
    """What a source is, by what lies there and else by how it is written. `peek` is a directory."""
    path = Path(source)
    if source == PEEK or path.is_dir():
        return "directory"
    if source.lower().endswith(".gguf"):
        return "gguf"
    return "hub" if _HUB_ID.fullmatch(source) else "name"


def check_source(source: str, engine: str, entry: EngineEntry, *, shown: str | None = None) -> None:
    """Raises `InvalidRequest` for what the engine does not take or what is not there. `shown`: as it was written."""
    kind, shown = kind_of(source), shown or source
    is_path = source.startswith((".", "/", "~"))
    if kind == "gguf" and (is_path or "gguf" in entry.sources) and not Path(source).is_file():
        raise _wrong(f"There is no file {shown!r}.")
    if source == PEEK or kind in entry.sources or "name" in entry.sources:
        if kind == "name" and is_path:
            raise _wrong(f"There is no model {shown!r}.")
        return
    if kind == "name":
        others = "".join(f", nor {_WORDS[k]}" for k in entry.sources if k != "directory")
        raise _wrong(f"There is no model {shown!r}: it is neither `{PEEK}` nor a directory{others}.")
    takes = " or ".join(_WORDS[k] for k in entry.sources)
    raise _wrong(f"{shown!r} is {_WORDS[kind]}, and the engine {engine} takes {takes}. {_HINTS[kind]}")


def name_of(source: str) -> str:
    """What a model is called whose operator gives it no name."""
    match kind_of(source):
        case "directory":
            return PEEK if source == PEEK else Path(source).resolve().name
        case "gguf":
            return Path(source).stem
        case _:
            return source


def model_directory(config: ModelConfig) -> Path:
    """Where the model's files are: a directory, or the copy that was made of a hub's. Nothing is downloaded.

    Raises `EngineUnavailable` when they are not there.
    """
    if kind_of(config.source) != "hub":
        return config.path
    from sightline.engines.hub import local_copy

    found = local_copy(config.source)
    if found is None:
        raise EngineUnavailable(
            f"The model {config.source!r} is not on this machine: `sightline pull {config.source} "
            f"--engine {config.engine}` downloads it."
        )
    return found


def _wrong(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="model")
