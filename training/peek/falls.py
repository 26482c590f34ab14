"""Whether a run learnt anything: CI trains for two minutes and asks this.

python -m training.peek.falls RUN_DIR

The dense stage's loss and the answers' loss must each end clearly below where they began. Exit status 1 if not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from training.peek.log import read

FALL: Final = 0.9
"""The last loss of a stage over its first, at most. Two minutes on two shared cores reach 0.5 and less."""
STAGES: Final = {"dense": "loss", "joint": "answers"}
"""What each stage is judged by."""


def falls(lines: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """First and last loss of each stage. Raises ValueError for a run too short to tell."""
    found = {}
    for stage, name in STAGES.items():
        losses = [float(line[name]) for line in lines if line.get("stage") == stage and name in line]
        if len(losses) < 2:
            raise ValueError(f"the log has {len(losses)} losses of the {stage} stage: train for longer")
        found[stage] = losses[0], losses[-1]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    found = falls(read(parser.parse_args().run))
    for stage, (first, last) in found.items():
        print(f"{stage} stage: loss {first:.3f} -> {last:.3f} {'falls' if last <= FALL * first else 'DOES NOT FALL'}")
    return int(any(last > FALL * first for first, last in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
