"""`sightline batch status`: how far a batch of a server (`/v1/batches`) is; with `--watch`, until it has ended."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from sightline.cli.progress import Progress
from sightline.client import Client, ClientError
from sightline.config import environment

_POLL_S: Final = 0.5
_ALIVE: Final = frozenset({"validating", "in_progress", "finalizing", "cancelling"})


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.set_defaults(act=run_status)
    command.add_argument("batch", metavar="BATCH", help="its id: batch_...")
    command.add_argument("--watch", action="store_true", help="show how it gets on, until it has ended")
    command.add_argument(
        "--url",
        default=environment("URL"),
        help="the server (default: http://127.0.0.1:8000/v1); its key is SIGHTLINE_API_KEY",
    )


def run_status(args: argparse.Namespace) -> int:
    """1 for a batch that has failed, or cannot be asked about."""
    try:
        with Client(args.url) as client:
            batch = client.batch(args.batch)
            if args.watch and batch["status"] in _ALIVE:
                batch = _watch(client, batch)
    except ClientError as error:
        print(f"sightline: {error}", file=sys.stderr)
        return 1
    print("\n".join(to_lines(batch)))
    return 1 if batch["status"] == "failed" else 0


def _watch(client: Client, batch: Mapping[str, Any]) -> Mapping[str, Any]:
    while batch["status"] == "validating":
        time.sleep(_POLL_S)
        batch = client.batch(batch["id"])
    done, failed = _done(batch)
    with Progress(batch["request_counts"]["total"], done=done, failed=failed) as progress:
        while batch["status"] in _ALIVE:
            time.sleep(_POLL_S)
            batch = client.batch(batch["id"])
            before, before_failed = done, failed
            done, failed = _done(batch)
            for number in range(done - before):
                progress.step(failed=number < failed - before_failed)
    return batch


def _done(batch: Mapping[str, Any]) -> tuple[int, int]:
    counts = batch["request_counts"]
    return counts["completed"] + counts["failed"], counts["failed"]


def to_lines(batch: Mapping[str, Any]) -> list[str]:
    """What a person wants to know."""
    counts = batch["request_counts"]
    status, total = batch["status"].replace("_", " "), counts["total"]
    requests = f"{total} request{'s' if total != 1 else ''}"
    lines = [f"{status}: {requests}, {counts['completed']} answered, {counts['failed']} failed"]
    for error in (batch["errors"] or {"data": []})["data"]:
        place = "" if error["line"] is None else f"line {error['line']}: "
        lines.append(f"  {place}{error['message']} ({error['code']})")
    files = ("output_file_id", "error_file_id")
    return [*lines, *(f"{name.removesuffix('_file_id')} file: {batch[name]}" for name in files if batch[name])]
