"""The command line: the composition root. A file a command, each with `add_arguments(parser)` and `run(args)`."""

from __future__ import annotations

import argparse
import errno
import io
import os
import select
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from keyword import iskeyword

from sightline import __version__
from sightline.errors import SightlineError

COMMANDS = {
    "serve": "Serve models over the OpenAI API.",
    "worker": "Do what waits in a queue that several machines share.",
    "cluster": "Serve models on the machines of a Ray cluster.",
    "check": "Check a configuration file, and show what it would serve.",
    "doctor": "Look for what would keep a server from working here.",
    "top": "Show what a server is doing, live.",
    "keys": "Make, show and revoke the API keys of a server.",
    "import": "Write a configuration file from LiteLLM's.",
    "ui": "Open a page to chat with the models in a browser.",
    "ask": "Ask a question about pictures, here in the terminal.",
    "batch": "Ask one question about many pictures, into a file.",
    "drift": "Compare the answers of two engines, and say why they differ.",
    "pull": "Download a model to where an engine finds it.",
    "engine": "Show the engines, and make environments for those that need one.",
    "convert": "Write a checkpoint in the format that another engine takes.",
}


def to_parser(only: str | None = None) -> argparse.ArgumentParser:
    """Of the whole command line; the commands' own are its subparsers. `only`: the one command whose arguments are
    wanted, so that the code of all others need not be read."""
    parser = argparse.ArgumentParser(prog="sightline", description="Serve vision-language models.")
    parser.add_argument("--version", action="version", version=f"sightline {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if only is not None and name != only:
            continue
        module = import_module(f"sightline.cli.{name}_" if iskeyword(name) else f"sightline.cli.{name}")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Exit status: 0 done, 1 it failed (the reason on stderr), 2 wrong usage, 130 interrupted, 141
    nobody reads what it prints."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character is told its number
    given = sys.argv[1:] if argv is None else argv
    if not given:  # who knows no command wants to see them
        to_parser(only="").print_help(sys.stderr)
        return 2
    try:
        args = to_parser(only=given[0] if given else "").parse_args(given)
        status = int(args.run(args))
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except SightlineError as error:
        print(f"sightline: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        if not _is_unread():
            raise
        _give_up_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _give_up_output()
        print(f"sightline: What it writes cannot be kept: {error.strerror}.", file=sys.stderr)
        return 1


def _is_unread() -> bool:
    """Whether it is our own output that nobody reads any more: `| head` has seen enough."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def _give_up_output() -> None:
    """What is left of it goes nowhere, so that the interpreter's end does not fail by it once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
