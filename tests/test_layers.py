"""Imports go one way: each layer may import only from those below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "sightline"

LAYERS = [
    {"types", "errors", "schemas", "jsonlines"},
    {"config", "metrics", "logs", "tracing", "images", "audio", "interprocess", "peek"},
    {"engines"},
    {
        "admission",
        "draining",
        "routing",
        "models",
        "engine_request",
        "understanding",
        "attempts",
        "items",
        "choices",
        "speech",
        "telling",
        "service",
        "jobs",
        "access",
        "configfile",
    },
    {"api", "batch", "client", "drift", "testing"},
    {"server", "frontends", "cluster", "ui", "bench"},
    {"cli", "__main__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
# Within the second layer, pictures may be counted but nothing there may know engines: ranks see to that.

WEB_FRAMEWORKS = {"starlette", "fastapi", "uvicorn", "httptools"}
PARSES_RESPONSES = SOURCE / "engines" / "remote" / "connection.py"
"""The one user of httptools that is a client."""


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts != ("__init__",):
            yield parts[0], path


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file; relative imports made absolute."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_top_level_module_has_a_layer() -> None:
    assert {name for name, _ in modules()} <= set(RANK)


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: str(getattr(value, "stem", value)))
def test_no_upward_import(name: str, path: Path) -> None:
    for imported in imports(path):
        package, _, rest = imported.partition(".")
        if package == "sightline" and rest.split(".")[0] in RANK:
            above = rest.split(".")[0]
            assert RANK[above] <= RANK[name], f"{path.relative_to(SOURCE)} imports {imported}, which is above it"


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: str(getattr(value, "stem", value)))
def test_only_the_surfaces_know_http(name: str, path: Path) -> None:
    if RANK[name] < RANK["api"]:
        allowed = {"httptools"} if path == PARSES_RESPONSES else set()
        assert not {i.partition(".")[0] for i in imports(path)} & WEB_FRAMEWORKS - allowed, path


def test_the_check_would_see_an_upward_import(tmp_path: Path) -> None:
    file = tmp_path / "types.py"
    file.write_text("def f():\n    from sightline.engines import Engine\n")
    assert "sightline.engines" in set(imports(file))
    assert RANK["engines"] > RANK["types"]
