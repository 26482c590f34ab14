"""The page of commands, made from what the command line itself takes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from sightline.cli import COMMANDS, to_parser

HEAD = """\
# Commands

Every command and what it takes; `sightline COMMAND --help` tells the same. This page is made from the code by
`python docs/generate.py`. Flags go before variables (`SIGHTLINE_HOST`, `SIGHTLINE_PORT` ...), and variables before the
[configuration file](configuration.md), which can say more than flags. The exit status is 0 where all went well, 1 where it did not (the
reason is on stderr), 2 for wrong usage, 130 after Ctrl-C, 141 when nobody reads what it prints.
"""


def commands_page() -> str:
    parsers = _subparsers(to_parser())
    index = "\n".join(f"- [`sightline {name}`](#sightline-{name}): {_lower(COMMANDS[name])}" for name in parsers)
    sections = (f"## sightline {name}\n\n{COMMANDS[name]}\n{_of(parser)}" for name, parser in parsers.items())
    return f"{HEAD}\n{index}\n\n" + "\n".join(sections)


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:].rstrip(".")


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


def _of(parser: argparse.ArgumentParser) -> str:
    below = _subparsers(parser)
    if not below:
        return _table(parser)
    told = {each.dest: each.help for each in _choices(parser)}
    return "".join(f"\n### {each.prog}\n\n{_sentence(told.get(name))}{_table(each)}" for name, each in below.items())


def _choices(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action._choices_actions


def _sentence(text: str | None) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}.\n" if text else ""


def _table(parser: argparse.ArgumentParser) -> str:
    rows = [
        f"| {_name(action)} | {_cell((action.help or '') % _defaults(parser, action))} |"
        for action in parser._actions
        if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)
    ]
    return "\n| | |\n|---|---|\n" + "\n".join(rows) + "\n" if rows else ""


def _defaults(parser: argparse.ArgumentParser, action: argparse.Action) -> dict[str, object]:
    """What argparse itself fills into a help text."""
    return {**vars(action), "prog": parser.prog}


def _name(action: argparse.Action) -> str:
    shown = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    value = " ".join(shown) if isinstance(shown, tuple) else str(shown)
    if not action.option_strings:
        return f"`{_cell(value)}`" + (", several" if action.nargs in ("*", "+") else "")
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    return names if action.nargs == 0 else f"{names} `{_cell(value)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
