"""`python -m training.peek.evaluation`: drives a running server (or its own) and writes what came of it."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import openai

from training.peek.evaluation import report, sheets
from training.peek.evaluation.cases import CANT_SEE, Case, Turn
from training.peek.evaluation.client import Result, ask_all, serve
from training.peek.evaluation.files import Photograph
from training.peek.evaluation.tables import to_table
from training.peek.evaluation.tasks import TASKS, make_cases

_PHOTOGRAPH_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_ABOUT_PHOTOGRAPHS = ("What is in the picture?", "What colour is the shape?", "What does it say?")


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 when every floor was reached and false refusals stay below their ceiling, else 1."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        others = [(report.name_of(run := json.loads(f.read_text()), f), run) for f in options.compare]
        cases = [case for task in options.tasks for case in make_cases(task, options.per_task, options.seed)]
        cases += photograph_cases(options.photographs) if options.photographs else []
    except (OSError, ValueError) as error:
        parser.error(str(error))

    options.out.mkdir(parents=True, exist_ok=True)
    with nullcontext(options.url) if options.url else serve(options.serve, options.out / "server.log") as url:
        began = time.perf_counter()
        model, results = asyncio.run(_ask(url, options, cases))
        elapsed = time.perf_counter() - began

    run = report.summarise(results, model=model, label=options.label or model, seed=options.seed)
    details = report.details(results)
    if others:
        run["compared"] = [report.compare(run | details, other, name) for name, other in others]
    _write(options.out, run, details, results)
    print(f"\nmodel {model}: {len(results)} questions in {elapsed:.0f} s\n\n{to_table(run)}\n")
    if errors := [r for r in results if r.error]:
        print(f"{len(errors)} requests failed; the first: {errors[0].error}")
    print(f"summary, results, failures and plot are in {options.out}")
    refusals = run["false_refusals"]
    return 0 if all(row["passed"] for row in run["tasks"]) and (not refusals or refusals["passed"]) else 1


def photograph_cases(directory: Path) -> list[Case]:
    """Questions about every picture file right in the directory, all to be answered with "I can only see ...".

    Raises `ValueError` where there is none.
    """
    files = [file for file in sorted(directory.iterdir()) if file.suffix.lower() in _PHOTOGRAPH_SUFFIXES]
    if not files:
        raise ValueError(f"{directory} holds no photographs ({', '.join(_PHOTOGRAPH_SUFFIXES)})")
    return [
        Case(
            f"{report.PHOTOGRAPHS}-{i:04}-{j}",
            report.PHOTOGRAPHS,
            file.name,
            (Turn(question, (Photograph(file),), CANT_SEE),),
        )
        for i, file in enumerate(files)
        for j, question in enumerate(_ABOUT_PHOTOGRAPHS)
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.peek.evaluation", description=__doc__)
    add = parser.add_argument
    add("--url", help="base URL of a running server, with /v1; without it one is started on a free port")
    add(
        "--serve",
        action="append",
        default=[],
        metavar="ARG",
        help="an argument for that server: --serve=--model --serve=DIR",
    )
    add("--model", help="served model to ask; by default the first one listed")
    add("--api-key", default="none")
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK", help=f"of: {', '.join(TASKS)}")
    add("--per-task", type=int, default=200)
    add("--concurrency", type=int, default=8)
    add("--seed", type=int, default=0, help="another seed asks about other pictures")
    add("--photographs", type=Path, metavar="DIR", help="real photographs to ask about too; reported apart")
    add("--label", help="what tables call this run: fp16, int8; by default the model's name")
    add(
        "--compare",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="results.json of another run, to stand beside this one",
    )
    add("--out", type=Path, required=True, help="directory for summary.json, results.json, failures.png, accuracy.png")
    return parser


def _write(out: Path, run: dict[str, Any], details: dict[str, Any], results: list[Result]) -> None:
    """summary.json is what docs/peek.json holds; results.json has every answer too."""
    (out / "summary.json").write_text(json.dumps(run, indent=1) + "\n")
    (out / "results.json").write_text(json.dumps(run | details, indent=1) + "\n")
    sheets.failures_sheet(results).save(out / "failures.png")
    sheets.accuracy_plot(report.scores(results)).save(out / "accuracy.png")


async def _ask(url: str, options: argparse.Namespace, cases: list[Case]) -> tuple[str, list[Result]]:
    async with openai.AsyncOpenAI(base_url=url, api_key=options.api_key) as client:
        name = options.model or (await client.models.list()).data[0].id
        progress = _progress(len(cases))
        return name, await ask_all(cases, client, model=name, concurrency=options.concurrency, progress=progress)


def _progress(total: int) -> Callable[[int], None]:
    """Says on stderr how far it is: in place on a terminal, else a line every ten seconds."""
    began = last = time.monotonic()
    terminal = sys.stderr.isatty()

    def show(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < (0.2 if terminal else 10):
            return
        last = now
        left = (now - began) / done * (total - done)
        line = f"{done} of {total} questions, {left:.0f} s left"
        print(f"\r{line:<60}" if terminal else line, end="" if terminal and done < total else "\n", file=sys.stderr)

    return show


if __name__ == "__main__":
    raise SystemExit(main())
