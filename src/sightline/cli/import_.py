"""`sightline import litellm-config.yaml`: LiteLLM's configuration as `sightline.yaml`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sightline.errors import InvalidRequest

_PROVIDER_KEYS = {"azure": "AZURE_API_KEY", "gemini": "GEMINI_API_KEY"}
"""Where LiteLLM looks for a provider's key, where that is not `<PROVIDER>_API_KEY`."""
_SAME = {"api_version": "api_version", "aws_region_name": "region", "vertex_project": "vertex_project", "vertex_location": "vertex_location"}  # fmt: skip  # noqa: E501
_OPENAI_SERVERS = frozenset({"openai", "hosted_vllm", "custom_openai"})
_READ = frozenset({"model", "api_base", "api_key", "timeout", "request_timeout", "stream_timeout", *_SAME})
_REFERENCE = "os.environ/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the configuration of LiteLLM's proxy")
    parser.add_argument("--out", type=Path, default=Path("sightline.yaml"), help="default: %(default)s; never replaced")


def run(args: argparse.Namespace) -> int:
    try:
        given = yaml.safe_load(args.file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequest(f"Cannot read {args.file}: {error.strerror}.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidRequest(f"Cannot read {args.file} as YAML ({type(error).__name__}).") from None
    made, notes = to_sightline(given)
    try:
        with args.out.open("x", encoding="utf-8") as file:
            yaml.safe_dump(made, file, sort_keys=False, allow_unicode=True)
    except OSError as error:
        raise InvalidRequest(f"Cannot write {args.out}: {error.strerror}. Name another with --out.") from None
    print("\n".join(f"not carried over: {note}" for note in notes), file=sys.stderr, end="\n" if notes else "")
    print(f"Wrote {args.out}. Next: sightline check {args.out}")
    return 0


def to_sightline(given: Any) -> tuple[dict[str, Any], list[str]]:
    """The content of a `sightline.yaml`, and what could not be carried over, without any key's value.

    Raises `InvalidRequest` for what is no configuration of LiteLLM's. Its format: docs.litellm.ai/docs/proxy/configs.
    """
    entries = given.get("model_list") if isinstance(given, dict) else None
    if not isinstance(entries, list) or not entries:
        raise InvalidRequest("This is no configuration of LiteLLM's proxy: it has no model_list.")
    notes = [f"{key} (the server's own settings)" for key in given if key not in ("model_list", "litellm_settings", "router_settings")]  # fmt: skip  # noqa: E501
    models: dict[str, dict[str, Any]] = {}
    spread: dict[str, list[str]] = {}
    for index, entry in enumerate(entries):
        try:
            name, params = str(entry["model_name"]), dict(entry["litellm_params"])
            provider_model = str(params["model"])
        except (KeyError, TypeError, ValueError):
            raise InvalidRequest(f"model_list[{index}] has no model_name, or no litellm_params with a model.") from None
        place = f"model_list[{index}]"
        own = name if name not in models else f"{name}-{len(spread[name]) + 1}"
        spread.setdefault(name, []).append(own)
        notes += [f"{place}.{key}" for key in entry if key not in ("model_name", "litellm_params")]
        notes += [f"{place}.litellm_params.{key}" for key in params if key not in _READ]
        models[own] = {"name": own, **_to_engine(provider_model, params, place, notes)}
    for name, names in spread.items():
        if len(names) > 1:
            models[name]["fallbacks"] = names[1:]
            notes.append(f"sharing of load over {', '.join(names)}; they are fallbacks of each other, in this order")
    for section in ("litellm_settings", "router_settings"):
        _add_fallbacks(models, given.get(section) or {}, section, notes)
    return {"models": list(models.values())}, notes


def _to_engine(name: str, params: Mapping[str, Any], place: str, notes: list[str]) -> dict[str, Any]:
    provider, _, rest = name.partition("/")
    if not rest:  # LiteLLM knows the provider of a bare name by its tables; most are OpenAI's
        provider, rest = "openai", name
    base = params.get("api_base")
    options: dict[str, Any]
    if provider in ("ollama", "ollama_chat"):
        engine, options = "ollama", {"model": rest, **({"base_url": _text(base)} if base else {})}
        if params.get("api_key"):
            notes.append(f"{place}.litellm_params.api_key (Ollama takes none here)")
    elif provider in _OPENAI_SERVERS and base:
        engine, options = "remote", {"base_url": _text(base), "model": rest}
        if variable := _variable(params, place, notes):
            wanted = variable if variable.startswith("SIGHTLINE_") else f"SIGHTLINE_{variable}"
            options["api_key_env"] = wanted
            if wanted != variable:
                notes.append(f"{place}.litellm_params.api_key: the name {variable}; set {wanted} to the same key")
    else:
        engine, options = "litellm", {"model": f"{provider}/{rest}", **({"api_base": _text(base)} if base else {})}
        options |= {ours: _text(params[theirs]) for theirs, ours in _SAME.items() if params.get(theirs)}
        variable = _variable(params, place, notes)
        wanted = _PROVIDER_KEYS.get(provider, f"{provider.upper()}_API_KEY")
        if variable:
            options["env"] = [wanted]
            if wanted != variable:
                notes.append(f"{place}.litellm_params.api_key: the name {variable}; set {wanted} to the same key")
    times = {
        "total_s": params.get("timeout") or params.get("request_timeout"),
        "silence_s": params.get("stream_timeout"),
    }
    for option, seconds in times.items():
        if isinstance(seconds, int | float):
            options[option] = float(seconds)
        elif seconds is not None:
            notes.append(f"{place}.litellm_params: the time limit for {option}, which is no number")
    return {"engine": engine, "options": options}


def _variable(params: Mapping[str, Any], place: str, notes: list[str]) -> str | None:
    """The variable that holds the key. A key itself is never repeated."""
    key = params.get("api_key")
    if isinstance(key, str) and key.startswith(_REFERENCE):
        return key.removeprefix(_REFERENCE)
    if key:
        notes.append(f"{place}.litellm_params.api_key: a key written out; put it into the environment, and name it")
    return None


def _text(value: Any) -> str:
    text = str(value)
    return f"${{{text.removeprefix(_REFERENCE)}}}" if text.startswith(_REFERENCE) else text.replace("${", "$${")


def _add_fallbacks(models: dict[str, dict[str, Any]], section: Mapping[str, Any], name: str, notes: list[str]) -> None:
    """`fallbacks: [{big: [small, other]}]`, which either section may have."""
    notes += [f"{name}.{key}" for key in section if key != "fallbacks"]
    for rule in section.get("fallbacks") or ():
        for model, others in rule.items() if isinstance(rule, dict) else ():
            for other in [others] if isinstance(others, str) else others:
                if model not in models or other not in models or _leads_to(models, other, model):
                    notes.append(f"{name}.fallbacks: {model} to {other} (unknown, or it would lead in a circle)")
                elif other not in models[model].setdefault("fallbacks", []):
                    models[model]["fallbacks"].append(other)


def _leads_to(models: Mapping[str, Mapping[str, Any]], start: str, end: str) -> bool:
    return start == end or any(_leads_to(models, name, end) for name in models[start].get("fallbacks", ()))
