"""Which engines there are: ours, by a table, and those of other packages, by the entry point group `sightline.engines`.

    [project.entry-points."sightline.engines"]
    mine = "my_package:MyEngine"

What an entry point names is an engine's class, or an `EngineEntry` that says more. Everything that asks for an engine
by its name asks here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sightline.errors import InvalidRequest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "sightline.engines"

SourceKind = Literal["directory", "gguf", "hub", "name"]
"""What `source` may be, beside `peek`: a directory, a GGUF file, a hub's id, a name that only the engine knows."""


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """A row of the engine table: where the class is, imported only when it is wanted."""

    target: str
    """`module:Class`; called with a `ModelConfig`, gives an `Engine` that runs in this process."""
    speech_target: str | None = None
    """The same for a source that is a Whisper model; None: the engine runs none."""
    isolated: bool = True
    """Runs in a supervised child process (`worker`). False for engines that only talk to another process."""
    summary: str = ""
    environment: Mapping[str, str] | None = None
    """Of an isolated engine that must not see our secrets: variables that its process gets, beside those that the
    operator names in the option `env` and what any program needs. None: it gets all of ours."""
    options: str | None = None
    """`module:Struct` of `ModelConfig.options`, importable without the engine's library; None: only the engine knows
    which options it has."""
    needs: tuple[str, ...] = ()
    """Modules of the extra of the engine's name, without which it cannot start."""
    sources: tuple[SourceKind, ...] = ("name",)
    starts_python: bool = False
    """Of an engine that is not isolated: it starts a program in the environment of `ModelConfig.python`."""

    @property
    def takes_python(self) -> bool:
        return self.isolated or self.starts_python


ENGINES: dict[str, EngineEntry] = {
    "openvino": EngineEntry(
        "sightline.engines.openvino:OpenVINOEngine",
        speech_target="sightline.engines.whisper.engine:OpenVINOWhisperEngine",
        summary="our own, on OpenVINO's runtime; fastest on a CPU",
        options="sightline.engines.openvino:Options",
        sources=("directory",),
    ),
    "vllm": EngineEntry(
        "sightline.engines.vllm:VllmEngine",
        isolated=False,
        summary="vLLM, in an environment of its own",
        options="sightline.engines.vllm:VllmOptions",
        sources=("directory", "hub", "name"),
        starts_python=True,
    ),
    "llamacpp": EngineEntry(
        "sightline.engines.llamacpp:LlamaCppEngine",
        isolated=False,
        summary="llama.cpp, from GGUF files",
        options="sightline.engines.llamacpp.options:LlamaCppOptions",
        needs=("xllamacpp",),
        sources=("directory", "gguf"),
    ),
    "remote": EngineEntry(
        "sightline.engines.remote:RemoteEngine",
        isolated=False,
        summary="any OpenAI-compatible server, by its address",
        options="sightline.engines.remote.options:RemoteOptions",
    ),
    "ollama": EngineEntry(
        "sightline.engines.ollama:OllamaEngine",
        isolated=False,
        summary="a model behind Ollama, by its own API",
        options="sightline.engines.ollama.options:OllamaOptions",
    ),
    "litellm": EngineEntry(
        "sightline.engines.litellm_provider:LiteLLMEngine",
        summary="a provider (OpenAI, Anthropic, Gemini, Bedrock, Azure ...), by LiteLLM's SDK",
        environment={
            # No files of keys (dotenv, ~/.aws, ~/.config/gcloud), no machine's own credentials, nothing downloaded.
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
            "LITELLM_LOCAL_BLOG_POSTS": "True",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_GCE_CHECK": "true",
            "HOME": "/nonexistent",
        },
        options="sightline.engines.litellm_provider:LiteLLMOptions",
        needs=("litellm",),
    ),
    "transformers": EngineEntry(
        "sightline.engines.transformers:TransformersEngine",
        speech_target="sightline.engines.whisper.engine:TransformersWhisperEngine",
        summary="Hugging Face transformers: any model it can open",
        options="sightline.engines.transformers:Options",
        needs=("torch", "transformers", "accelerate"),
        sources=("directory", "hub"),
    ),
    "easydel": EngineEntry(
        "sightline.engines.easydel:EasyDelEngine",
        summary="EasyDeL's eSurge on JAX: TPU, GPU or CPU",
        options="sightline.engines.easydel.options:Options",
        needs=("jax", "easydel"),
        sources=("directory",),
    ),
    "fake": EngineEntry(
        "sightline.engines.fake:FakeEngine",
        summary="deterministic, no model; for tests, load tests and docs",
        options="sightline.engines.fake:FakeOptions",
    ),
}
"""Our own. A name of theirs cannot be taken by another package."""


def find_entry(name: str) -> EngineEntry:
    """The row of an engine.

    Raises `InvalidRequest` for a name that nobody has or that more than one has, and for a package that cannot be
    imported.
    """
    points = [point for point in _entry_points() if point.name == name]
    own = ENGINES.get(name)
    if len(points) + (own is not None) > 1:
        claims = [*(["Sightline"] if own is not None else []), *map(_package, points)]
        raise InvalidRequest(
            f"The engine name {name!r} is claimed by {' and by '.join(claims)}, and which of them is meant cannot be "
            "told. Uninstall all but one.",
            param="engine",
        )
    if own is not None:
        return own
    if not points:
        raise InvalidRequest(unknown_engine(name), param="engine")
    return _load(points[0])


def engine_names() -> tuple[str, ...]:
    """Every engine's, ours first; nothing is imported."""
    return (*ENGINES, *sorted({point.name for point in _entry_points()} - ENGINES.keys()))


def unknown_engine(name: str) -> str:
    """What is told of a name that nobody has."""
    names = sorted(engine_names())
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"There is no engine {name!r}.{hint} Engines: {', '.join(names)}."


def _entry_points() -> Iterable[EntryPoint]:
    """In a stable order. One package that is found twice on the path counts once."""
    from importlib.metadata import entry_points  # 0.1 s that only those pay who choose an engine

    found = {(point.name, point.value, _package(point)): point for point in entry_points(group=GROUP)}
    return [found[key] for key in sorted(found)]


def _package(point: EntryPoint) -> str:
    return "a package without a name" if point.dist is None else f"the package {point.dist.name} {point.dist.version}"


def _load(point: EntryPoint) -> EngineEntry:
    try:
        named = point.load()
    except Exception as error:  # other people's code
        raise InvalidRequest(
            f"The engine {point.name!r} of {_package(point)} cannot be imported: {type(error).__name__}: {error}",
            param="engine",
        ) from error
    if isinstance(named, EngineEntry):
        return named
    if not callable(named):
        raise InvalidRequest(
            f"The engine {point.name!r} of {_package(point)} is neither a class nor an EngineEntry: {point.value}.",
            param="engine",
        )
    return EngineEntry(point.value, summary=_package(point).removeprefix("the "))
