"""docs/configuration.md and docs/sightline.schema.json, made from the types that read the file."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from sightline.config import (
    AccessPolicy,
    AdminEndpoint,
    AudioLimits,
    BatchLimits,
    CorsPolicy,
    FetchPolicy,
    FileLimits,
    HttpLimits,
    ImageLimits,
    KeyConfig,
    ModelConfig,
    OptimizedPictures,
    PictureSize,
    ResponseLimits,
    Settings,
    Tls,
    Tracing,
)
from sightline.configfile import options_type, schema
from sightline.engines import ENGINES

EXAMPLE = Path(__file__).parent.parent / "examples" / "sightline.yaml"

PAGE = """\
# The configuration file

One file says what a server is: where it listens, what pictures may cost, which models it serves.
This page is made from the code by `python docs/generate.py`.

```yaml
{example}```

Look at what it would serve, before it does. Every problem is told, with its line; the exit status is 1 then.

```bash
sightline check examples/sightline.yaml
```

```text
{table}
```

```shell
sightline serve examples/sightline.yaml     # or: sightline serve -c FILE
```

Flags and the variables `SIGHTLINE_HOST`, `SIGHTLINE_PORT` and `SIGHTLINE_FETCH` go before the file. Flags about one model (`--model`,
`--engine`, `--option` ...) are refused beside it: the file names its own. The [JSON schema](sightline.schema.json) lets an editor complete and check.

## Rules of the file

- An unknown key is an error, and so is a repeated one; anchors, aliases and merge keys of YAML are not taken.
- `${{NAME}}` in a text is the variable NAME of the environment, which must be set; `$${{` is a plain `${{`.
- Secrets stand in the environment alone. A key, token or password written out among an engine's options is refused. Most engines
  take the *name* of a variable: `api_key_env` of [`remote`](engine-remote.md), `env` of [`litellm`](engine-litellm.md).
- `source`, and the options `checkpoint` and `ca_file`, are relative to the file.
- Every name and alias is used once. Fallbacks are names or aliases of the file's models, and never lead back.

## From LiteLLM

```shell
sightline import litellm-config.yaml --out sightline.yaml
```

Takes the `model_list` of LiteLLM's proxy, and `fallbacks`. `hosted_vllm/`, and `openai/` with an `api_base`, become the engine `remote`;
`ollama/` becomes `ollama`; every other provider `litellm`. Several entries of one name become fallbacks of each other. What is not carried
over is told, line by line; no key is ever copied. It never replaces a file.

## The server

{server}

{sections}

## Options of the engines

{engines}
"""

_TABLE = """\
MODEL     ENGINE    SOURCE  LOADED     ALSO KNOWN AS  FALLBACKS
peek      openvino  peek    at start   gpt-4o-mini    stand-in
stand-in  fake      -       on demand  -              -
on http://127.0.0.1:8000/v1"""


def configuration_page() -> str:
    sections = (
        ("A model, in `models`", ModelConfig),
        ("`picture_size`, of the server and of a model", PictureSize),
        ("`images`", ImageLimits),
        ("`audio`", AudioLimits),
        ("`fetch`", FetchPolicy),
        ("`http`", HttpLimits),
        ("`tls`", Tls),
        ("`cors`", CorsPolicy),
        ("`access`", AccessPolicy),
        ("A key, in `access.keys`", KeyConfig),
        ("`admin`", AdminEndpoint),
        ("`responses`", ResponseLimits),
        ("`files`", FileLimits),
        ("`batches`", BatchLimits),
        ("`optimized`", OptimizedPictures),
        ("`tracing`", Tracing),
    )
    return PAGE.format(
        example=EXAMPLE.read_text(),
        table=_TABLE,
        server=_table(Settings),
        sections="\n\n".join(f"## {title}\n\n{_table(kind)}" for title, kind in sections),
        engines="\n\n".join(
            f"### {name}\n\n{_table(options_type(entry.options))}" for name, entry in ENGINES.items() if entry.options
        ),
    )


def schema_page() -> str:
    return json.dumps(schema(), indent=2) + "\n"


def _table(kind: type[msgspec.Struct]) -> str:
    meanings = _meanings(kind)
    rows = [
        f"| `{each.name}` | {_default(each)} | {meanings.get(each.name, '')} |" for each in msgspec.structs.fields(kind)
    ]
    return "\n".join(["| key | default | |", "|---|---|---|", *rows])


def _default(each: Any) -> str:
    if each.required:
        return "must be given"
    value = each.default_factory() if each.default is msgspec.NODEFAULT else each.default
    if isinstance(value, msgspec.Struct) or (each.name == "models" and value):
        return "peek" if each.name == "models" else "see below"
    text = json.dumps(msgspec.to_builtins(value))
    return "" if text in ("null", "{}", "[]", '""') else f"`{text}`"


def _meanings(kind: type[Any]) -> dict[str, str]:
    """The texts below a struct's fields, those of its bases included."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if each.__module__.startswith("sightline."):
            body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0].body  # type: ignore[attr-defined]
            for field, text in pairwise(body):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(text, ast.Expr)
                    and isinstance(text.value, ast.Constant)
                ):
                    meaning = " ".join(str(text.value.value).split()).replace("|", "\\|")
                    found[ast.unparse(field.target)] = meaning
    return found
