"""`sightline drift MODEL --engines a,b`: the same pictures and questions on two engines, and where they part."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sightline import logs
from sightline.cli.models import to_options, whole
from sightline.config import PEEK, ModelConfig
from sightline.drift.answers import Told, ask
from sightline.drift.compare import MEANING, Agreement, compare_all
from sightline.drift.drawing import drawn
from sightline.drift.questions import DEFAULT_QUESTIONS, Question, each_of_each, read_pictures, read_texts
from sightline.drift.report import Report, thumbnails, to_html, to_json
from sightline.engines import ENGINES, find_entry
from sightline.engines.sources import check_source
from sightline.errors import InvalidRequest

_LISTED = 10
"""Questions that are listed in the terminal; all are in the report."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=f"`{PEEK}`, or a directory that holds the model")
    parser.add_argument(
        "--engines",
        required=True,
        metavar="A,B",
        help="two or more, the first is what the others are compared with; LABEL=ENGINE runs one engine twice, with "
        f"other options. Engines: {', '.join(ENGINES)}, and those of other packages",
    )
    parser.add_argument(
        "--engine-option",
        action="append",
        default=[],
        metavar="NAME.KEY=VALUE",
        help="an option of one engine (JSON where it is JSON, else text); NAME.source=DIR is its own MODEL; repeatable",
    )
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="picture files (default: drawn ones)")
    parser.add_argument(
        "--questions",
        type=Path,
        metavar="FILE",
        help="a question a line, each asked of every picture (default: three general ones, or those drawn)",
    )
    parser.add_argument("--count", type=int, default=200, metavar="N", help="how many are drawn (default 200)")
    parser.add_argument(
        "--max-tokens", type=whole(1, 2**31 - 1), default=32, metavar="N", help="longest answer (default 32)"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.05,
        metavar="NATS",
        help="how far log-probabilities may be apart with the same weights and precision (default 0.05)",
    )
    parser.add_argument(
        "--at-least",
        type=float,
        default=0.99,
        metavar="SHARE",
        help="exit status 1 when fewer of the answers agree (default 0.99)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="writes drift.json and drift.html there")


def run(args: argparse.Namespace) -> int:
    logs.set_up("warning", "human")
    _check_numbers(args)
    engines = to_engines(args.engines, args.engine_option, args.model)
    questions = _questions(args)
    if args.out is not None:
        _make(args.out)
    report, shown = asyncio.run(_compare(args, engines, questions))
    if args.out is not None:
        (args.out / "drift.json").write_text(json.dumps(to_json(report), indent=1), encoding="utf-8")
        (args.out / "drift.html").write_text(to_html(report, shown), encoding="utf-8")
    _print(report)
    if args.out is not None:
        print(f"\n{args.out / 'drift.html'} and drift.json beside it have every answer.")
    return 0 if report.passed else 1


def to_engines(names: str, pairs: Sequence[str], model: str) -> list[ModelConfig]:
    """By label, in order. Raises `InvalidRequest` for engines or options that cannot be meant."""
    entries = [name.strip().rpartition("=") for name in names.split(",")]
    labelled = {(label or engine): engine for label, _, engine in entries}
    if len(labelled) < 2 or len(labelled) < len(entries):
        raise InvalidRequest(
            f"--engines takes two or more, each under its own name, not {names!r}. "
            "Write openvino,transformers, or exact=openvino,int8=openvino for one engine twice."
        )
    options: dict[str, list[str]] = {label: [] for label in labelled}
    for pair in pairs:
        label, dot, option = pair.partition(".")
        if not dot or label not in options:
            raise InvalidRequest(
                f"--engine-option takes NAME.KEY=VALUE, with one of {', '.join(options)} for NAME, not {pair!r}."
            )
        options[label].append(option)
    return [_config(label, engine, to_options(options[label]), model) for label, engine in labelled.items()]


def _config(label: str, engine: str, options: dict[str, object], model: str) -> ModelConfig:
    given = options.pop("source", None)
    source = model if given is None else str(given)
    check_source(source, engine, find_entry(engine))
    return ModelConfig(name=label, engine=engine, source=source, options=options)


def _check_numbers(args: argparse.Namespace) -> None:
    if args.count < 1 or args.max_tokens < 1 or args.tolerance <= 0 or not 0 <= args.at_least <= 1:
        raise InvalidRequest(
            "--count and --max-tokens are 1 or more, --tolerance is above 0, and --at-least is a share from 0 to 1."
        )


def _questions(args: argparse.Namespace) -> list[Question]:
    texts = None if args.questions is None else read_texts(args.questions)
    if args.pictures is not None:
        return each_of_each(read_pictures(args.pictures), texts or DEFAULT_QUESTIONS)
    questions = drawn(args.count)
    return questions if texts is None else each_of_each([q.pictures[0] for q in questions], texts)


def _make(directory: Path) -> None:
    """Before anything runs, so that no answer is lost for want of a place."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequest(f"Cannot write to {str(directory)!r}: {error.strerror}.") from None


async def _compare(
    args: argparse.Namespace, engines: Sequence[ModelConfig], questions: Sequence[Question]
) -> tuple[Report, dict[str, str]]:
    """The report, and its thumbnails: made first, since they tell which file is no picture."""
    shown = await thumbnails(questions)
    told: dict[str, Told] = {}
    for config in engines:
        told[config.name] = await ask(config, questions, args.max_tokens, _progress(config.name, len(questions)))
    agreements = compare_all({label: each.answers for label, each in told.items()}, args.tolerance)
    return Report(args.model, questions, told, agreements, args.at_least, args.tolerance), shown


def _progress(label: str, total: int) -> Callable[[int], None]:
    """On a terminal after every answer; elsewhere once, at the end."""

    def show(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{label}: {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif done == total:
            print(f"{label}: {done} answers", file=sys.stderr)

    return show


def _print(report: Report) -> None:
    width = max(len(label) for label in report.told)
    print(f"{report.model}, {len(report.questions)} questions, beside {report.agreements[0].reference}:")
    for agreement in report.agreements:
        apart = agreement.first_apart
        first = "" if apart is None else f"; first log-probabilities at most {apart:.5f} apart"
        print(
            f"  {agreement.engine:{width}}  {agreement.agreeing} of {len(report.questions)} agree "
            f"({100 * agreement.share:.1f} %){first}"
        )
        for (cause, agrees), count in agreement.causes.most_common():
            print(f"  {'':{width}}  {count:4} x {cause}{' (the answers agree)' if agrees else ''}: {MEANING[cause]}")
    for agreement in report.agreements:
        _list_differing(report, agreement)


def _list_differing(report: Report, agreement: Agreement) -> None:
    differing = [number for number, found in enumerate(agreement.comparisons) if not found.agrees]
    for number in differing[:_LISTED]:
        found, question = agreement.comparisons[number], report.questions[number]
        where = "" if found.at is None else f", token {found.at}"
        print(f"\n{question.id} {question.text!r}: {found.cause}{where}")
        for label in (agreement.reference, agreement.engine):
            print(f"  {label}: {_told(report.told[label], number, found.at)}")
    if len(differing) > _LISTED:
        print(f"\nand {len(differing) - _LISTED} more of {agreement.engine}")


def _told(told: Told, number: int, at: int | None) -> str:
    """An answer on a line, with what it was made from. `repr` keeps a model's control characters from the terminal."""
    answer = told.answers[number]
    if answer.error is not None:
        return answer.error
    sizes = ", ".join(f"{width}x{height}" for width, height in answer.served)
    line = f"{answer.text!r} ({answer.reason}; {answer.prompt_tokens} tokens, pictures {sizes or 'none'}"
    if at is not None and answer.tokens is not None and at < len(answer.tokens):
        token = answer.tokens[at]
        line += f"; {token.text!r} {token.logprob:.3f}"
        line += "" if token.margin is None else f", margin {token.margin:.3f}"
    return line + ")"
