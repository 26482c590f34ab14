"""`sightline batch run` killed again and again: no row lost, none twice. `python -m tests.batch.kill --kills 20`."""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

COLOURS = ("red", "blue", "black", "white")


def write_input(folder: Path, total: int) -> Path:
    for colour in COLOURS:
        Image.new("RGB", (56, 56), colour).save(folder / f"{colour}.png")
    table = folder / "in.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "picture"])
        writer.writerows([f"r-{n}", f"{COLOURS[n % 4]}.png"] for n in range(total))
    return table


def run_killed(folder: Path, total: int, kills: int, seed: int, step_s: float = 0.01) -> tuple[int, int]:
    """How often it was killed at work and how often it ran. Asserts that the rows are those of the input."""
    chance = random.Random(seed)
    out = folder / "out.jsonl"
    command = [
        sys.executable,
        "-m",
        "sightline.cli",
        "batch",
        "run",
        str(write_input(folder, total)),
        "--prompt",
        "hello",
    ]
    command += ["--out", str(out), "--engine", "fake", "--option", f"step_s={step_s}"]
    partial = out.with_name(out.name + ".partial")
    killed = runs = 0
    while not out.exists():
        runs += 1
        assert runs < 4 * kills + 10, "it gets nowhere"
        before = partial.stat().st_size if partial.exists() else 0
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
        if killed < kills:
            while process.poll() is None and not (partial.exists() and partial.stat().st_size > before):
                time.sleep(0.005)  # until it works: a kill while it starts proves little
            time.sleep(chance.uniform(0, 0.3))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                killed += 1
        _, said = process.communicate(timeout=300)
        assert process.returncode in (0, -signal.SIGKILL), said.decode()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"r-{n}" for n in range(total)], "a row is lost, twice, or out of order"
    for number, row in enumerate(rows):
        assert row["answer"] == f"I see 1 picture: 56x56 mostly {COLOURS[number % 4]}. You said: hello"
    return killed, runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        killed, runs = run_killed(Path(folder), args.rows, args.kills, args.seed)
    print(f"{args.rows} rows, killed {killed} times in {runs} runs: 0 lost, 0 twice, all in order")


if __name__ == "__main__":
    main()
