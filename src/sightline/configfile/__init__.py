"""`sightline.yaml`: what a server is told at start, as a file.

The file is `Settings`, field by field; its JSON schema (docs/sightline.schema.json) is made from the same types.
Nothing stops at the first mistake: every step collects `Problem`s, each with its line and its path.

    text -> nodes (YAML) -> values, `${NAME}` filled in -> Settings -> models, checked with their engines
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import yaml

from sightline.config import PEEK, ModelConfig, Settings, Tls
from sightline.configfile.schema import options_type, schema
from sightline.configfile.text import Problem, Reading, compose, dump, to_value
from sightline.engines import EngineEntry, find_entry, load_engine, refuse_python, target_of
from sightline.engines.environments import RECIPES
from sightline.engines.interpreter import find, verify
from sightline.engines.sources import check_source
from sightline.errors import InvalidRequest, SightlineError

__all__ = ["Problem", "check", "load", "options_type", "schema", "to_settings", "verify_model"]

_PATH_OPTIONS = frozenset({"checkpoint", "ca_file"})


def load(file: Path) -> Settings:
    """The settings of a file. Raises `InvalidRequest` with every problem, a line each."""
    settings, problems = check(file)
    if settings is None or problems:
        raise InvalidRequest("\n".join(problem.show(str(file)) for problem in problems), param="config")
    return settings


def to_settings(values: Mapping[str, Any]) -> Settings:
    """Settings of what a file holds, `${NAME}` filled in by this machine's environment. Models are not checked with
    their engines, which may be on other machines. Raises `InvalidRequest` with every problem, a line each."""
    reading = Reading(Path())
    node = compose(dump(values))
    assert isinstance(node, yaml.Node)
    settings = _to_struct(reading, to_value(reading, node, ""), Settings, "")
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
    reading = Reading(file.resolve().parent)
    node = compose(text)
    if isinstance(node, Problem):
        return None, [node]
    if not isinstance(node, yaml.MappingNode):
        return None, [Problem("must hold settings, such as `models:` with a list below it.", 1)]
    values = to_value(reading, node, "")
    given = values.pop("models", None) if "models" in values else [{"name": PEEK}]
    settings = _to_struct(reading, values, Settings, "")
    models = _to_models(reading, given)
    if settings is not None and models:
        settings = msgspec.structs.replace(settings, models=models, tls=_to_tls(reading, settings.tls))
    return settings, sorted(reading.problems, key=lambda problem: problem.line or 0)


# ---- values to settings


def _to_struct(reading: Reading, value: Any, kind: type[Any], path: str) -> Any:
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


def _to_field(reading: Reading, value: Any, kind: Any, path: str) -> Any:
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


def _to_tls(reading: Reading, tls: Tls | None) -> Tls | None:
    """With files anchored where the configuration is."""
    if tls is None:
        return None
    here = reading.directory
    return Tls(certificate=str(here / tls.certificate), key=str(here / tls.key))


# ---- models, with each other and with their engines


def _to_models(reading: Reading, value: Any) -> tuple[ModelConfig, ...]:
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


def _names(reading: Reading, models: Mapping[str, ModelConfig]) -> dict[str, str]:
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


def _with_fallbacks(reading: Reading, model: ModelConfig, path: str, owners: Mapping[str, str]) -> ModelConfig:
    """With names in place of aliases."""
    for index, name in enumerate(model.fallbacks):
        if name not in owners:
            hint = difflib.get_close_matches(name, owners, n=1)
            known = f"Did you mean {hint[0]!r}?" if hint else f"Models: {', '.join(sorted(owners))}."
            reading.wrong(f"{path}.fallbacks[{index}]", f"there is no model {name!r}. {known}")
    fallbacks = tuple(owners.get(name, name) for name in model.fallbacks)
    return msgspec.structs.replace(model, fallbacks=fallbacks)


def _to_model(reading: Reading, model: ModelConfig, path: str) -> ModelConfig:
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


def _anchored(reading: Reading, model: ModelConfig, entry: EngineEntry) -> ModelConfig:
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
    reading = Reading(Path())
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


def _check_options(reading: Reading, model: ModelConfig, entry: EngineEntry, path: str) -> None:
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


def _check_packages(reading: Reading, model: ModelConfig, entry: EngineEntry, path: str) -> None:
    missing = [name for name in entry.needs if model.python is None and find_spec(name) is None]
    if missing and not (model.engine == "llamacpp" and model.options.get("executable")):
        own = f", or give it an environment of its own: sightline engine install {model.engine}"
        reading.wrong(
            f"{path}.engine",
            f"{model.engine} needs {', '.join(missing)}: pip install 'sightline[{model.engine}]'"
            f"{own if model.engine in RECIPES else ''}.",
        )


def _check_python(reading: Reading, model: ModelConfig, entry: EngineEntry, path: str) -> None:
    assert model.python is not None
    try:
        refuse_python(model, entry)
        if entry.isolated:
            verify(model.python, model.engine, entry.needs)
        else:
            find(model.python)
    except InvalidRequest as error:
        reading.wrong(f"{path}.python", _within(error.message))


def _refuse_cycles(reading: Reading, models: Mapping[str, ModelConfig]) -> None:
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
