"""`sightline.yaml`: what a server is told at start, as a file.

The file is `Settings`, field by field; its JSON schema (docs/sightline.schema.json) is made from the same types.
Nothing stops at the first mistake: every step collects `Problem`s, each with its line and its path.

    text -> nodes (YAML) -> values, `${NAME}` filled in -> Settings -> models, checked with their engines

YAML is PyYAML's safe subset without anchors (a file cannot unfold into gigabytes) and without repeated keys.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import yaml

from sightline.config import PEEK, ModelConfig, Settings, Tls, variable
from sightline.engines import EngineEntry, engine_names, find_entry, load_engine, refuse_python, target_of
from sightline.engines.environments import RECIPES
from sightline.engines.interpreter import find, verify
from sightline.engines.sources import check_source
from sightline.errors import InvalidRequest, SightlineError

_PATH_OPTIONS = frozenset({"checkpoint", "ca_file"})
_VARIABLE = re.compile(r"\$(\$\{)|\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_ONLY_VARIABLE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")
_SECRET = re.compile(r"(?i)(?!.*_per_token$)(?:.*[_-])?(?:api[_-]?key|token|secret|secret[_-]access[_-]key|password)")
"""Names of what must not be written down; `api_key_env`, `step_tokens` and `prefill_s_per_token` are none."""
_PASSWORD = re.compile(r"[a-z0-9+]+://[^/@]*:(?!\$\{[A-Za-z_][A-Za-z0-9_]*\}@)[^/@]+@")
"""A URL with a password that is written out, not named: `redis://:secret@host`."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a file."""

    message: str
    line: int | None = None
    """From 1 on."""
    path: str = ""
    """`models[1].engine`; empty: the file as a whole."""

    def show(self, file: str) -> str:
        place = file if self.line is None else f"{file}:{self.line}"
        return f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"


@dataclass(slots=True)
class _Reading:
    """A file on its way: where each value stands, and what was found wrong so far."""

    directory: Path
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    filled: dict[str, str] = field(default_factory=dict)
    """Values that came from the environment, and `${NAME}` for each: maybe secrets, so no message repeats one."""

    def wrong(self, path: str, message: str) -> None:
        for value, name in self.filled.items():
            message = message.replace(value, name)
        place = path
        while place and place not in self.lines:  # a field that was left out stands where its parent does
            place = place[: max(place.rfind("."), place.rfind("["), 0)]
        self.problems.append(Problem(message, self.lines.get(place), path))


def load(file: Path) -> Settings:
    """The settings of a file. Raises `InvalidRequest` with every problem, a line each."""
    settings, problems = check(file)
    if settings is None or problems:
        raise InvalidRequest("\n".join(problem.show(str(file)) for problem in problems), param="config")
    return settings


class _Dumper(yaml.SafeDumper):
    """Writes out what a program names twice: `_Loader` takes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_settings(values: Mapping[str, Any]) -> Settings:
    """Settings of what a file holds, `${NAME}` filled in by this machine's environment. Models are not checked with
    their engines, which may be on other machines. Raises `InvalidRequest` with every problem, a line each."""
    reading = _Reading(Path())
    node = yaml.compose(yaml.dump(dict(values), Dumper=_Dumper), Loader=_Loader)
    settings = None if node is None else _to_struct(reading, _to_value(reading, node, ""), Settings, "")
    if reading.problems:
        raise InvalidRequest(
            "\n".join(replace(problem, line=None).show("settings") for problem in reading.problems), param="config"
        )
    assert isinstance(settings, Settings)
    return settings


def check(file: Path) -> tuple[Settings | None, list[Problem]]:
    """Settings as far as they can be made (None: not at all), and all that is wrong with the file."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        return None, [Problem(f"cannot be read: {error.strerror}.")]
    except UnicodeDecodeError:
        return None, [Problem("is not text in UTF-8.")]
    reading = _Reading(file.resolve().parent)
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        return None, [Problem(f"is not YAML that is taken here: {error.problem or error.context}.", line)]
    except yaml.YAMLError:
        return None, [Problem("is not YAML: it holds characters that no text has.")]
    if not isinstance(node, yaml.MappingNode):
        return None, [Problem("must hold settings, such as `models:` with a list below it.", 1)]
    values = _to_value(reading, node, "")
    given = values.pop("models", None) if "models" in values else [{"name": PEEK}]
    settings = _to_struct(reading, values, Settings, "")
    models = _to_models(reading, given)
    if settings is not None and models:
        settings = msgspec.structs.replace(settings, models=models, tls=_to_tls(reading, settings.tls))
    return settings, sorted(reading.problems, key=lambda problem: problem.line or 0)


# ---- YAML to values


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not; write the value out", problem_mark=mark)
        return super().compose_node(parent, index)


_CONSTRUCTOR = yaml.constructor.SafeConstructor()


def _to_value(reading: _Reading, node: yaml.Node, path: str) -> Any:
    reading.lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _to_mapping(reading, node, path)
    if isinstance(node, yaml.SequenceNode):
        return [_to_value(reading, child, f"{path}[{index}]") for index, child in enumerate(node.value)]
    try:
        value = _CONSTRUCTOR.construct_object(node)
    except (yaml.YAMLError, ValueError):
        reading.wrong(path, f"cannot be read as {node.tag.removeprefix('tag:yaml.org,2002:')}; quote it if it is text.")
        return None
    return _fill_in(reading, value, path) if isinstance(value, str) else value


def _to_mapping(reading: _Reading, node: yaml.MappingNode, path: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        below = f"{path}.{key}" if path else key
        if not isinstance(key_node, yaml.ScalarNode) or key == "<<":
            reading.problems.append(Problem("keys are plain words here.", key_node.start_mark.line + 1, path))
        elif key in values:
            line = key_node.start_mark.line + 1
            reading.problems.append(Problem(f"is written twice, first in line {reading.lines[below]}.", line, below))
        else:
            reading.lines[below] = key_node.start_mark.line + 1
            if _holds_secret(path, key, value_node):
                reading.wrong(
                    below,
                    "a secret must not stand in this file, which is copied and committed. Name a variable of the "
                    f"environment that holds it: {key}: ${{{key.upper()}}}, or the option that takes a name.",
                )
            values[key] = _to_value(reading, value_node, below)
    return values


def _holds_secret(path: str, key: str, node: yaml.Node) -> bool:
    values = node.value if isinstance(node, yaml.SequenceNode) else [node]
    literal = any(
        isinstance(each, yaml.ScalarNode) and each.value and not _ONLY_VARIABLE.fullmatch(each.value) for each in values
    )
    return bool(literal and ".options" in path and _SECRET.fullmatch(key)) or any(
        isinstance(each, yaml.ScalarNode) and _PASSWORD.match(each.value) for each in values
    )


def _fill_in(reading: _Reading, text: str, path: str) -> str:
    """`${NAME}` by the environment's value; `$${` is a plain `${`."""

    def value(match: re.Match[str]) -> str:
        if match[1]:
            return match[1]
        if (found := variable(match[2])) is None:
            reading.wrong(
                path, f"the environment variable {match[2]} is not set. Set it, or write $${{ for a plain ${{."
            )
        if found:
            reading.filled[found] = match[0]
        return found or ""

    return _VARIABLE.sub(value, text)


# ---- values to settings


def _to_struct(reading: _Reading, value: Any, kind: type[Any], path: str) -> Any:
    """A `kind` of a mapping; None where that cannot be, for a reason that is among the problems then."""
    if not isinstance(value, dict):
        reading.wrong(path, f"must be a mapping with the keys {', '.join(kind.__struct_fields__)}.")
        return None
    before = len(reading.problems)
    fields = {each.name: each for each in msgspec.structs.fields(kind)}
    given = {}
    for name, item in value.items():
        below = f"{path}.{name}" if path else name
        if name in fields:
            given[name] = _to_field(reading, item, fields[name].type, below)
        else:
            reading.wrong(below, _unknown(name, fields))
    for name in fields.keys() - value.keys():
        if fields[name].required:
            reading.wrong(f"{path}.{name}" if path else name, "is missing, and must be given.")
    if len(reading.problems) > before:
        return None
    try:
        return kind(**given)
    except InvalidRequest as error:
        name = (error.param or "").rpartition(".")[2]
        reading.wrong(".".join(filter(None, (path, name if name in fields else ""))), error.message)
        return None


def _to_field(reading: _Reading, value: Any, kind: Any, path: str) -> Any:
    inner = next((each for each in getattr(kind, "__args__", ()) if _is_struct(each)), None)
    if inner is not None and type(None) in kind.__args__ and value is not None:
        kind = inner
    if _is_struct(kind):
        return _to_struct(reading, value, kind, path)
    try:
        return msgspec.convert(value, kind)
    except InvalidRequest as error:
        reading.wrong(path, error.message)
        return None
    except msgspec.ValidationError as error:
        quote = " Quote it, if it is text." if kind is str and isinstance(value, int | float) else ""
        reading.wrong(path, f"{_plain(error)}.{_allowed(kind)}{quote}")
        return None


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _unknown(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return (
        f"there is no such key. Did you mean {near[0]}?" if near else f"there is no such key. Keys: {', '.join(names)}."
    )


def _plain(error: msgspec.ValidationError) -> str:
    return str(error).partition(" - at ")[0].replace("`", "")


def _allowed(kind: Any) -> str:
    values = [str(value) for value in getattr(kind, "__args__", ()) if isinstance(value, str)]
    return f" Allowed: {', '.join(values)}." if values else ""


def _to_tls(reading: _Reading, tls: Tls | None) -> Tls | None:
    """With files anchored where the configuration is."""
    if tls is None:
        return None
    here = reading.directory
    return Tls(certificate=str(here / tls.certificate), key=str(here / tls.key))


# ---- models, with each other and with their engines


def _to_models(reading: _Reading, value: Any) -> tuple[ModelConfig, ...]:
    """Those that can be read; what is wrong with the others is among the problems."""
    if not isinstance(value, list) or not value:
        reading.wrong("models", "must be a list of one model or more, each begun by `- name:`.")
        return ()
    read = {f"models[{i}]": _to_struct(reading, item, ModelConfig, f"models[{i}]") for i, item in enumerate(value)}
    models: dict[str, ModelConfig] = {path: model for path, model in read.items() if model is not None}
    owners = _names(reading, models)
    if len(models) == len(read):  # else a name may be unknown only because its model could not be read
        models = {path: _with_fallbacks(reading, model, path, owners) for path, model in models.items()}
        _refuse_cycles(reading, models)
    return tuple(_to_model(reading, model, path) for path, model in models.items())


def _names(reading: _Reading, models: Mapping[str, ModelConfig]) -> dict[str, str]:
    """Whose each name and alias is."""
    owners: dict[str, str] = {}
    for place, name, owner in (
        *((f"{path}.name", model.name, model.name) for path, model in models.items()),
        *((f"{path}.aliases[{j}]", a, m.name) for path, m in models.items() for j, a in enumerate(m.aliases)),
    ):
        if not name.strip():
            reading.wrong(place, "must not be empty.")
        elif name in owners:
            reading.wrong(
                place, f"{name!r} already means the model {owners[name]!r}; every name and alias is used once."
            )
        else:
            owners[name] = owner
    return owners


def _with_fallbacks(reading: _Reading, model: ModelConfig, path: str, owners: Mapping[str, str]) -> ModelConfig:
    """With names in place of aliases."""
    for index, name in enumerate(model.fallbacks):
        if name not in owners:
            hint = difflib.get_close_matches(name, owners, n=1)
            known = f"Did you mean {hint[0]!r}?" if hint else f"Models: {', '.join(sorted(owners))}."
            reading.wrong(f"{path}.fallbacks[{index}]", f"there is no model {name!r}. {known}")
    fallbacks = tuple(owners.get(name, name) for name in model.fallbacks)
    return msgspec.structs.replace(model, fallbacks=fallbacks)


def _to_model(reading: _Reading, model: ModelConfig, path: str) -> ModelConfig:
    try:
        entry = find_entry(model.engine)
    except InvalidRequest as error:
        reading.wrong(f"{path}.engine", _within(error.message))
        return model
    given = model.source
    model = _anchored(reading, model, entry)
    try:
        check_source(model.source, model.engine, entry, shown=given)
    except InvalidRequest as error:
        reading.wrong(f"{path}.source", _within(error.message))
    _check_options(reading, model, entry, path)
    return model


def _within(sentence: str) -> str:
    """A sentence as what follows a colon."""
    return sentence[:1].lower() + sentence[1:]


def _anchored(reading: _Reading, model: ModelConfig, entry: EngineEntry) -> ModelConfig:
    """With paths that are relative to the file made absolute: also where such a path is only to be found from the
    directory in which we happen to run, which is then told."""
    source, here = model.source, reading.directory
    takes_files = bool({"directory", "gguf"} & set(entry.sources))
    is_path = source.startswith(("./", "../")) or (takes_files and ((here / source).exists() or Path(source).exists()))
    options = {
        key: str(here / value) if key in _PATH_OPTIONS and isinstance(value, str) else value
        for key, value in model.options.items()
    }
    # A Python is anchored as it stands: what a link of an environment leads to is another Python.
    python = str(here / model.python) if model.python and "/" in model.python else model.python
    return msgspec.structs.replace(
        model, source=str(here / source) if source != PEEK and is_path else source, options=options, python=python
    )


def verify_model(model: ModelConfig) -> None:
    """What a file's model is checked for, of one that flags name. Raises `InvalidRequest`: an option that its engine
    does not know or take, a package that is not installed, a Python that is none."""
    reading = _Reading(Path())
    entry = find_entry(model.engine)
    # To make an engine that has a process of its own costs memory here: only where it was told something.
    is_looked_at = model.options or model.python or not entry.isolated
    (_check_options if is_looked_at else _check_packages)(reading, model, entry, "")
    for problem in reading.problems:
        option = problem.path.removeprefix(".options.")
        raise InvalidRequest(
            problem.message if option == problem.path else f"--option {option}: {problem.message}",
            param=problem.path.removeprefix("."),
        )


def _check_options(reading: _Reading, model: ModelConfig, entry: EngineEntry, path: str) -> None:
    if entry.options is not None:
        known = options_type(entry.options).__struct_fields__
        for name in [name for name in model.options if name not in known]:
            reading.wrong(f"{path}.options.{name}", _unknown(name, known))
    if model.python is not None:
        _check_python(reading, model, entry, path)
    _check_packages(reading, model, entry, path)
    if any(problem.path.startswith(f"{path}.options") for problem in reading.problems):
        return
    try:
        # Made, not started: that is where every engine checks what it is told.
        load_engine(model, target_of(model, entry))
    except SightlineError as error:
        reading.wrong(f"{path}.options", error.message)


def _check_packages(reading: _Reading, model: ModelConfig, entry: EngineEntry, path: str) -> None:
    missing = [name for name in entry.needs if model.python is None and find_spec(name) is None]
    if missing and not (model.engine == "llamacpp" and model.options.get("executable")):
        own = f", or give it an environment of its own: sightline engine install {model.engine}"
        reading.wrong(
            f"{path}.engine",
            f"{model.engine} needs {', '.join(missing)}: pip install 'sightline[{model.engine}]'"
            f"{own if model.engine in RECIPES else ''}.",
        )


def _check_python(reading: _Reading, model: ModelConfig, entry: EngineEntry, path: str) -> None:
    assert model.python is not None
    try:
        refuse_python(model, entry)
        if entry.isolated:
            verify(model.python, model.engine, entry.needs)
        else:
            find(model.python)
    except InvalidRequest as error:
        reading.wrong(f"{path}.python", _within(error.message))


def _refuse_cycles(reading: _Reading, models: Mapping[str, ModelConfig]) -> None:
    after = {model.name: model.fallbacks for model in models.values()}
    for path, model in models.items():
        seen, waiting = set[str](), list(model.fallbacks)
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting.extend(after.get(name, ()))
        if model.name in seen:
            reading.wrong(f"{path}.fallbacks", f"they lead back to {model.name!r}; a fallback must not.")


# ---- the schema


def options_type(where: str) -> type[msgspec.Struct]:
    """The struct of an engine's options: `where` is `EngineEntry.options`."""
    module, _, name = where.partition(":")
    found: type[msgspec.Struct] = getattr(import_module(module), name)
    return found


def _options_of(engine: str) -> str | None:
    try:
        return find_entry(engine).options
    except InvalidRequest:  # another package's, which cannot be used: whoever names it is told why
        return None


def schema() -> dict[str, Any]:
    """The file's JSON schema (2020-12), the options of each engine by the engine's name: of those that are here."""
    told = {name: where for name in engine_names() if (where := _options_of(name)) is not None}
    kinds = [Settings, *map(options_type, told.values())]
    schemas, parts = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    model = parts["ModelConfig"]
    model["properties"]["engine"]["enum"] = sorted(engine_names())
    # The default engine is `openvino`: its rule holds where `engine` is left out, too; others want it written.
    model["allOf"] = [
        {
            "if": {
                "properties": {"engine": {"const": engine}},
                "required": [] if engine == ModelConfig(name=PEEK).engine else ["engine"],
            },
            "then": {"properties": {"options": options}},
        }
        for engine, options in zip(told, schemas[1:], strict=True)
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sightline.yaml",
        **schemas[0],
        "$defs": dict(parts),
    }
