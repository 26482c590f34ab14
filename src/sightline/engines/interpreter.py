"""Another Python than the server's, for an engine that has an environment of its own: whether it can run the engine.

It is asked before a worker is started with it, because what a worker without its packages says is a traceback.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sightline import __version__
from sightline.engines.environments import RECIPES, own_requirement
from sightline.errors import InvalidRequest

_LEAST: Final = (3, 11)
_PATIENCE_S: Final = 30.0
_OURS_ALONE: Final = frozenset({"PYTHONHOME", "PYTHONPATH", "__PYVENV_LAUNCHER__"})
"""Variables that say where the libraries of this Python are, and would mislead another."""
_QUESTION: Final = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
try:
    ours = version("sightline") if find_spec("sightline") else None
except PackageNotFoundError:
    ours = None
missing = [name for name in sys.argv[1:] if find_spec(name) is None]
print(json.dumps([list(sys.version_info[:3]), ours, missing]))
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """What a Python says of itself."""

    version: tuple[int, ...]
    sightline: str | None
    """The version of this package there; None: it is not installed."""
    missing: tuple[str, ...]
    """Of the modules that were asked for, those it lacks."""


def find(python: str) -> str:
    """The program that `python` names: a path, or a name to look up. Raises `InvalidRequest`."""
    if (found := shutil.which(python)) is None:
        raise InvalidRequest(
            f"There is no Python {python!r}. Name the one of an environment, such as /opt/engine/bin/python; "
            "`sightline engine install ENGINE` makes one and prints it.",
            param="python",
        )
    return found


def ask(python: str, needs: Sequence[str] = ()) -> Interpreter:
    """Asks the program; takes some 50 ms. Raises `InvalidRequest` for what is no Python."""
    command = [find(python), "-I", "-c", _QUESTION, *needs]
    try:
        answer = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE_S, env=foreign(os.environ)
        )
        version, sightline, missing = json.loads(answer.stdout)
        return Interpreter(tuple(version), sightline, tuple(missing))
    except (OSError, subprocess.TimeoutExpired, ValueError, TypeError):
        raise InvalidRequest(f"{python!r} is no Python that runs here.", param="python") from None


def verify(python: str, engine: str, needs: Sequence[str]) -> None:
    """Raises `InvalidRequest`, which says what to run, for a Python in which the engine's worker would not start."""
    found = ask(python, needs)
    if found.version[:2] < _LEAST:
        raise InvalidRequest(
            f"{python!r} is Python {'.'.join(map(str, found.version))}; Sightline needs 3.11 or newer.", param="python"
        )
    if found.sightline == __version__ and not found.missing:
        return
    if found.sightline is None:
        problem = "has no sightline, which runs the engine there"
    elif found.sightline != __version__:
        problem = f"has sightline {found.sightline}, and this server is {__version__}"
    else:
        problem = f"lacks {', '.join(found.missing)}, which the engine {engine} needs"
    if engine in RECIPES:
        remedy = f"`sightline engine install {engine}` makes an environment that can."
    else:
        remedy = f"Run: {shlex.join([python, '-m', 'pip', 'install', *own_requirement(), *found.missing])}"
    raise InvalidRequest(f"The Python {python!r} {problem}. {remedy}", param="python")


def foreign(ours: Mapping[str, str]) -> dict[str, str]:
    """`ours` without what would mislead another Python."""
    return {name: value for name, value in ours.items() if name not in _OURS_ALONE}
