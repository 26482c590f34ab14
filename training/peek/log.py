"""A run's log: a line of JSON for each thing noted, in `log.jsonl` of its directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

LOG: Final = "log.jsonl"


def read(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / LOG).read_text().splitlines()]
