"""As much of a Dockerfile as ours use: instructions by stage, with variables filled in.

Docker's reference: https://docs.docker.com/reference/dockerfile/. No heredocs, no `escape` directive.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_EXPANDED = {"COPY", "ENV", "FROM", "LABEL", "USER", "WORKDIR", "VOLUME", "EXPOSE", "STOPSIGNAL"}
"""Instructions in which Docker fills in variables itself; in RUN the shell does."""


@dataclass(frozen=True)
class Instruction:
    name: str
    value: str

    @property
    def words(self) -> list[str]:
        """Of exec form, where it is that, else those between spaces."""
        return list(map(str, json.loads(self.value))) if self.value.startswith("[") else self.value.split()

    @property
    def is_exec(self) -> bool:
        return self.value.startswith("[")


@dataclass
class Stage:
    image: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        return [each for each in self.instructions if each.name == name]

    def last(self, name: str) -> Instruction:
        return self.all(name)[-1]

    @property
    def environment(self) -> dict[str, str]:
        return {name: value for each in self.all("ENV") for name, value in pairs(each.value)}


def pairs(value: str) -> list[tuple[str, str]]:
    """`A=b C="d e"`."""
    found = re.findall(r'([\w.]+)=("[^"]*"|\S+)', value)
    return [(name, text.strip('"')) for name, text in found]


def read(path: Path) -> list[Stage]:
    stages: list[Stage] = []
    known: dict[str, str] = {}
    for name, value in _lines(path.read_text()):
        if name in _EXPANDED:
            value = _fill_in(value, known)
        if name == "ARG" and not stages:
            known |= dict(pairs(value))
        elif name == "FROM":
            image, _, alias = value.partition(" AS ")
            stages.append(Stage(image, alias or str(len(stages))))
        else:
            assert stages, f"{path}: {name} before FROM"
            stages[-1].instructions.append(Instruction(name, value))
    return stages


def _fill_in(value: str, known: dict[str, str]) -> str:
    return _VARIABLE.sub(lambda match: known.get(match[1] or match[2], match[0]), value)


def _lines(text: str) -> list[tuple[str, str]]:
    kept = "\n".join(line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    whole = re.sub(r"\s*\\\n\s*", " ", kept)
    return [(name, value) for name, _, value in (line.partition(" ") for line in whole.splitlines())]
