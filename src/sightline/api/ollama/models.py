"""What Ollama's API tells of models: names, tags, show, ps. Pure.

Ollama's names end in a tag, `name:tag`, where `latest` is the one that is meant when there is none. Ours are shown with
`:latest` unless they have a tag, and are found with it or without.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType

from sightline.api.ollama.reply import to_time
from sightline.errors import ModelNotFound
from sightline.models import ModelStatus
from sightline.service import Service

_LATEST = ":latest"
_NEVER = "9999-12-31T23:59:59Z"
"""When a model is unloaded: nobody who asks here can say."""


class Details(msgspec.Struct, frozen=True, kw_only=True):
    """Of files that Ollama would have. Here `format` and `family` are the engine; the rest is not known."""

    parent_model: str = ""
    format: str
    family: str
    families: list[str]
    parameter_size: str = ""
    quantization_level: str = ""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    model: str
    modified_at: str
    size: int = 0
    """Bytes; 0: not told."""
    digest: str
    """Of the weight file that was loaded; of the model's name where there is none."""
    details: Details
    capabilities: list[str]
    expires_at: str | UnsetType = UNSET
    size_vram: int | UnsetType = UNSET
    context_length: int | UnsetType = UNSET


class Models(msgspec.Struct, frozen=True):
    models: list[Model]


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    modelfile: str
    parameters: str = ""
    template: str = ""
    """Not told: the model's own is used."""
    details: Details
    model_info: dict[str, str | int]
    capabilities: list[str]
    modified_at: str


def resolve(name: str, service: Service) -> ModelStatus:
    """The model that a client means. Raises `Forbidden`, and `ModelNotFound` in the words that Ollama has for it."""
    names = (name, name.removesuffix(_LATEST))
    for wanted in names:
        for status in service.models():
            if status.name == wanted:
                return status
    for wanted in names:
        service.refuse_foreign(wanted)
    raise ModelNotFound(f"model '{name[:128]}' not found", param="model")


def to_name(name: str) -> str:
    return name if ":" in name.rpartition("/")[2] else name + _LATEST


def to_tags(served: Sequence[ModelStatus]) -> Models:
    return Models([_to_model(status) for status in served])


def to_ps(served: Sequence[ModelStatus]) -> Models:
    """Those that are loaded."""
    running = []
    for status in served:
        if status.state == "ready":
            context = UNSET if status.info is None else status.info.context_length
            running.append(
                msgspec.structs.replace(_to_model(status), expires_at=_NEVER, size_vram=0, context_length=context)
            )
    return Models(running)


def to_shown(status: ModelStatus) -> Shown:
    model_info: dict[str, str | int] = {"general.architecture": status.engine, "general.basename": status.name}
    if status.info is not None:
        model_info[f"{status.engine}.context_length"] = status.info.context_length
    return Shown(
        modelfile=f"# Not made of a Modelfile: served by Sightline's engine {status.engine}.\nFROM {status.name}\n",
        details=_to_details(status),
        model_info=model_info,
        capabilities=_to_capabilities(status),
        modified_at=to_time(status.created),
    )


def _to_model(status: ModelStatus) -> Model:
    name = to_name(status.name)
    return Model(
        name=name,
        model=name,
        modified_at=to_time(status.created),
        digest=_to_digest(status),
        details=_to_details(status),
        capabilities=_to_capabilities(status),
    )


def _to_details(status: ModelStatus) -> Details:
    return Details(format=status.engine, family=status.engine, families=[status.engine])


def _to_capabilities(status: ModelStatus) -> list[str]:
    """What only a loaded model tells is left out until it is."""
    info = status.info
    if info is None:
        return ["completion"]
    can = {
        "completion": "messages" in info.work,
        "vision": info.vision is not None,
        "tools": "tools" in info.features,
        "embedding": "embeddings" in info.work,
    }
    return [name for name, does in can.items() if does]


def _to_digest(status: ModelStatus) -> str:
    """64 hexadecimal digits: clients cut pieces of it."""
    told = None if status.info is None else status.info.weights_digest
    return hashlib.sha256(status.name.encode()).hexdigest() if told is None else told.removeprefix("sha256:")
