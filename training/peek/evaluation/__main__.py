"""`python -m training.peek.evaluation`: drives a running server (or its own) and writes what came of it."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from contextlib import nullcontext
from pathlib import Path

import openai

from training.peek.evaluation import report
from training.peek.evaluation.client import Result, ask_all, serve
from training.peek.evaluation.questions import TASKS, Case, make_cases


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 when every task that has a floor reached it, 1 when one did not."""
    parser = argparse.ArgumentParser(prog="python -m training.peek.evaluation", description=__doc__)
    parser.add_argument(
        "--url", help="base URL of a running server, with /v1; without it one is started on a free port"
    )
    parser.add_argument(
        "--serve",
        action="append",
        default=[],
        metavar="ARG",
        help="an argument for that server: --serve=--model --serve=DIR",
    )
    parser.add_argument("--model", help="served model to ask; by default the first one listed")
    parser.add_argument("--api-key", default="none")
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK", help=f"of: {', '.join(TASKS)}"
    )
    parser.add_argument("--per-task", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="another seed asks about other pictures")
    parser.add_argument(
        "--out", type=Path, required=True, help="directory for results.json, failures.png, accuracy.png"
    )
    options = parser.parse_args(argv)

    cases = [case for task in options.tasks for case in make_cases(task, options.per_task, options.seed)]
    options.out.mkdir(parents=True, exist_ok=True)
    with nullcontext(options.url) if options.url else serve(options.serve, options.out / "server.log") as url:
        began = time.perf_counter()
        model, results = asyncio.run(_ask(url, options.api_key, options.model, cases, options.concurrency))
        elapsed = time.perf_counter() - began

    rows = report.scores(results)
    data = report.to_json(results, model=model, seed=options.seed)
    (options.out / "results.json").write_text(json.dumps(data, indent=1) + "\n")
    report.failures_sheet(results).save(options.out / "failures.png")
    report.accuracy_plot(rows).save(options.out / "accuracy.png")

    print(f"\nmodel {model}: {len(results)} questions in {elapsed:.0f} s\n\n{report.to_table(rows)}\n")
    if errors := [r for r in results if r.error]:
        print(f"{len(errors)} requests failed; the first: {errors[0].error}")
    print(f"results, failures and plot are in {options.out}")
    return 0 if all(row.passed for row in rows) else 1


async def _ask(
    url: str, api_key: str, model: str | None, cases: list[Case], concurrency: int
) -> tuple[str, list[Result]]:
    async with openai.AsyncOpenAI(base_url=url, api_key=api_key) as client:
        name = model or (await client.models.list()).data[0].id
        return name, await ask_all(cases, client, model=name, concurrency=concurrency)


if __name__ == "__main__":
    raise SystemExit(main())
