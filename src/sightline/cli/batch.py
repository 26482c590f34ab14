"""`sightline batch run`: one question about many pictures, answered into a file. `batch_status.py` has the other."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline import logs
from sightline.batch import Batch
from sightline.batch.results import Results
from sightline.batch.tasks import count_tasks, read_tasks
from sightline.cli import batch_ray, batch_status
from sightline.cli.models import add_model_arguments, add_sampling_arguments, to_model_config, whole
from sightline.cli.progress import Progress
from sightline.client import ClientError
from sightline.config import Settings, environment
from sightline.configfile import load
from sightline.errors import InvalidRequest

if TYPE_CHECKING:
    from sightline.batch.ray_data import RayBatch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    summary = "Ask one question about many pictures; goes on where it stopped."
    command = actions.add_parser("run", help=summary, description=summary)
    command.set_defaults(act=run_batch)
    command.add_argument(
        "sources",
        nargs="+",
        metavar="INPUT",
        help="picture files, globs, folders; tables (.csv, .jsonl) with a column `picture` or `pictures`, and where "
        "they want `prompt` and `id`; other columns are carried through",
    )
    command.add_argument("--prompt", help="the question, for every input that has none of its own")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="answers: .jsonl, .csv or .parquet")
    command.add_argument("--recursive", action="store_true", help="folders with the folders in them")
    command.add_argument("--restart", action="store_true", help="begin anew, replacing what is there")
    command.add_argument("--limit", type=whole(1, 2**31 - 1), metavar="N", help="only the first N inputs")
    command.add_argument("--system", help="a system text before every question")
    add_sampling_arguments(command)
    command.add_argument("--schema", type=Path, metavar="FILE", help="a JSON schema that every answer is to follow")
    command.add_argument(
        "--concurrency", type=whole(1, 4096), metavar="N", help="at once (default: what keeps the engine busy)"
    )
    command.add_argument(
        "--retries", type=whole(0, 1000), default=3, metavar="N", help="of a failure that may pass (default: 3)"
    )
    command.add_argument(
        "--url",
        default=environment("URL"),
        help="ask a running server (http://127.0.0.1:8000/v1) instead of loading a model here; its key is "
        "SIGHTLINE_API_KEY",
    )
    command.add_argument("-c", "--config", type=Path, metavar="FILE", help="models from a configuration file")
    add_model_arguments(command)
    batch_ray.add_arguments(command)
    command.set_defaults(said={name: command.get_default(name) for name in _UNSAID}, **_UNSAID)
    summary = "How far a batch of a server is."
    batch_status.add_arguments(actions.add_parser("status", help=summary, description=summary))


_UNSAID: dict[str, Any] = {"model": None, "engine": None, "python": None, "option": []}
"""Arguments that choose the model of this process; of a server, only its model's name can be chosen."""


def run(args: argparse.Namespace) -> int:
    return int(args.act(args))


def run_batch(args: argparse.Namespace) -> int:
    logs.set_up("warning", "human")
    total = count_tasks(args.sources, recursive=args.recursive)
    total = total if args.limit is None else min(total, args.limit)
    batch, model = _to_batch(args, total)
    asked = {
        "model": model,
        "system": args.system,
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "seed": args.seed,
        "schema": _read_schema(args.schema),
        "detail": args.detail,
    }
    with Results(args.out, asked, restart=args.restart) as results:
        try:
            asyncio.run(_run(args, batch, results, total))
        except ClientError as error:
            print(f"sightline: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(
                f"stopped with {results.num_done} of {total} done; the same command goes on from there", file=sys.stderr
            )
            raise
        results.finish()
        done, failed = results.num_done, results.num_failed
    print(f"{done} answers in {args.out}" + (f", {failed} of them errors" if failed else ""))
    return 1 if failed else 0


async def _run(args: argparse.Namespace, batch: Batch | RayBatch, results: Results, total: int) -> None:
    tasks = read_tasks(args.sources, args.prompt, recursive=args.recursive)
    remaining = results.remaining(task for task in tasks if task.index < total)
    if results.num_done:
        print(f"{results.num_done} of {total} were done before", file=sys.stderr)
    async with batch:
        with Progress(total, done=results.num_done, failed=results.num_failed) as progress:
            async with aclosing(batch.run(remaining)) as rows:
                async for row in rows:
                    results.write(row)
                    progress.step(failed=row.error is not None)


def _to_batch(args: argparse.Namespace, total: int) -> tuple[Batch | RayBatch, str | None]:
    """And what names its model, for another run to compare."""
    common: dict[str, Any] = {
        "system": args.system,
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "seed": args.seed,
        "schema": _read_schema(args.schema),
        "detail": None if args.detail == "auto" else args.detail,
        "concurrency": args.concurrency,
        "retries": args.retries,
    }
    if args.on == "ray":
        return batch_ray.to_ray_batch(args, total, common)
    batch_ray.refuse_elsewhere(args)
    if args.url is not None:
        for argument in ("engine", "python", "option"):
            if getattr(args, argument):
                raise InvalidRequest(
                    f"--{argument} is about a model in this process, and --url asks a server. Leave one of them out.",
                    param=argument,
                )
        name = args.name or args.model
        return Batch(args.prompt, url=args.url, model=name, **common), name
    if args.config is not None:
        settings = load(args.config)
        name = args.name or settings.models[0].name
        if name not in {known for model in settings.models for known in (model.name, *model.aliases)}:
            raise InvalidRequest(f"{args.config} has no model {name!r}.", param="name")
        return Batch(args.prompt, model=name, settings=settings, **common), name
    for argument, default in args.said.items():
        if getattr(args, argument) is None:
            setattr(args, argument, default)
    config = to_model_config(args)
    return Batch(args.prompt, settings=Settings(models=(config,)), **common), f"{config.engine}:{config.source}"


def _read_schema(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{str(path)!r} is no JSON schema that can be read: {error}.", param="schema") from None
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{str(path)!r} is no JSON schema: it is not an object.", param="schema")
    return schema
