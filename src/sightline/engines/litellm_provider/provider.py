"""LiteLLM without what it would do by itself, and what its tables say of a provider and its model."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sightline.config import ModelConfig
from sightline.engines import EngineInfo
from sightline.engines.litellm_provider.options import LiteLLMOptions
from sightline.engines.provider_pictures import Limits, limits_of
from sightline.engines.remote.kinds import Kind
from sightline.engines.remote.options import AS_IS, RemoteOptions, read_budget
from sightline.errors import EngineUnavailable
from sightline.images.budget import VisionBudget
from sightline.images.published import published_budget

_INSTALL = "pip install 'sightline[litellm]'"
_TALKATIVE = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "httpx", "httpcore", "openai", "botocore")
"""Loggers whose lines hold what people wrote, and URLs with keys in them."""
_FIELDS = frozenset(
    {
        "max_tokens", "seed", "top_k", "min_p", "min_tokens", "presence_penalty", "frequency_penalty",
        "repetition_penalty", "ignore_eos", "stop_token_ids", "logit_bias", "logprobs", "top_logprobs", "stop",
    }
)  # fmt: skip
"""What `to_body` may write beside the fields of every request."""
_PROVIDERS_OWN: Mapping[str, frozenset[str]] = {"anthropic": frozenset({"top_k"})}
"""Parameters that are no OpenAI parameters, and reach the provider by their own name."""
_FEATURES: Mapping[str, frozenset[str]] = {
    "seed": frozenset({"seed"}),
    "top_k": frozenset({"top_k"}),
    "penalties": frozenset({"presence_penalty", "frequency_penalty"}),
    "logit_bias": frozenset({"logit_bias"}),
    "logprobs": frozenset({"logprobs", "top_logprobs"}),
    "tools": frozenset({"tools", "tool_choice"}),
    "json_object": frozenset({"response_format"}),
    "json_schema": frozenset({"response_format"}),
}
"""Of `FEATURES`: the parameters each needs."""


@dataclass(frozen=True, slots=True)
class Provider:
    """What is known of the provider and its model once LiteLLM is there."""

    litellm: Any
    name: str
    kind: Kind
    info: EngineInfo
    limits: Limits
    budget: VisionBudget | None
    """None: what a picture costs is not known."""
    params: frozenset[str]


def import_litellm() -> Any:
    """With everything off that it would do by itself. Raises `EngineUnavailable`."""
    try:
        litellm: Any = importlib.import_module("litellm")
    except ImportError as error:
        raise EngineUnavailable(
            f"The package litellm is not there, or cannot be imported ({error}): {_INSTALL}"
        ) from None
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    litellm.suppress_debug_info = True
    litellm.turn_off_message_logging = True
    litellm.drop_params = False
    litellm.modify_params = False
    litellm.num_retries = 0
    litellm.cache = None
    litellm.telemetry = False
    litellm.disable_hf_tokenizer_download = True
    for callbacks in ("callbacks", "input_callback", "success_callback", "failure_callback", "service_callback"):
        setattr(litellm, callbacks, [])
    return litellm


def look_up(litellm: Any, config: ModelConfig, options: LiteLLMOptions) -> Provider:
    """Raises `EngineUnavailable` for a model of which too little is known, or told."""
    try:
        name, provider, _, _ = litellm.get_llm_provider(options.model, api_base=options.api_base)
    except litellm.exceptions.BadRequestError:
        raise EngineUnavailable(
            f"LiteLLM knows no provider of {options.model!r}; write it as anthropic/claude-sonnet-4-5."
        ) from None
    missing = litellm.validate_environment(options.model, api_base=options.api_base)["missing_keys"]
    if missing:
        raise EngineUnavailable(
            f"{provider} needs {' and '.join(missing)}: set it in this server's environment, and name it in the "
            "option env."
        )
    table = _table_of(litellm, name, provider)
    supported = frozenset(litellm.get_supported_openai_params(name, provider) or ())
    params = supported | _PROVIDERS_OWN.get(provider, frozenset())
    kind = Kind(
        features=frozenset(f for f, needs in _FEATURES.items() if needs <= params),
        state="",
        is_ready=lambda reply, model: True,
        lacks=_FIELDS - params,
    )
    limits = limits_of(provider)
    budget, known = _budget(options, name, table)
    length = options.context_length or table.get("max_input_tokens")
    if not length:
        raise EngineUnavailable(
            f"LiteLLM does not know how much the context of {options.model!r} holds: set the option context_length."
        )
    info = EngineInfo(
        engine=config.engine,
        context_length=length,
        vision=budget,
        max_images=options.max_images or limits.max_images,
        features=kind.features if options.features is None else frozenset(options.features),
    )
    return Provider(litellm, provider, kind, info, limits, budget if known else None, params)


def _table_of(litellm: Any, model: str, provider: str) -> Mapping[str, Any]:
    """The row of LiteLLM's table of models; empty for one that it does not know."""
    try:
        return dict(litellm.get_model_info(model, custom_llm_provider=provider))
    except Exception:  # its class has changed between versions
        return {}


def _budget(options: LiteLLMOptions, model: str, table: Mapping[str, Any]) -> tuple[VisionBudget | None, bool]:
    """How the model sees, and whether it is known what that costs."""
    wanted = options.budget
    if wanted is None and (published := published_budget(model)) is not None:
        return published, True
    if wanted is None and not table.get("supports_vision"):
        return None, True
    remote = RemoteOptions(base_url="http://localhost", budget=wanted or AS_IS, max_pixels=options.max_pixels)
    return read_budget(remote), wanted not in (None, AS_IS)
