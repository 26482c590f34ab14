"""What a child sees of our environment. Pure.

An engine whose row has an `environment` runs other people's code with somebody's keys: it gets the keys that the
operator names for it, and no others. It is given at the start of the process, because what has once been there can be
read from `/proc/self/environ` for as long as the process lives.
"""

from __future__ import annotations

from collections.abc import Mapping

from sightline.config import ModelConfig
from sightline.engines import EngineEntry
from sightline.engines.interpreter import foreign

KEPT_VARIABLES = (
    "PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)  # fmt: skip
"""What any program needs, where it is set."""


def child_environment(config: ModelConfig, entry: EngineEntry, ours: Mapping[str, str]) -> dict[str, str] | None:
    """None: all of `ours`. What the option `env` names and is not set is left out; the engine says so.

    Another Python (`ModelConfig.python`) is not told where the libraries of this one are.
    """
    if config.python is not None:
        ours = foreign(ours)
    if entry.environment is None:
        return None if config.python is None else dict(ours)
    named = config.options.get("env")
    names = [*KEPT_VARIABLES, *(named if isinstance(named, list | tuple) else ())]
    kept = {name: ours[name] for name in names if isinstance(name, str) and name in ours}
    return {**entry.environment, **kept}
