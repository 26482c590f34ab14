"""What an operator may say of the engine `litellm`. Nothing of LiteLLM is imported here."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from sightline.config import ModelConfig
from sightline.engines import FEATURES
from sightline.engines.remote.options import wrong

_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")


class LiteLLMOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelConfig.options` of the engine `litellm`."""

    model: str
    """LiteLLM's name, with the provider: `anthropic/claude-sonnet-4-5`, `bedrock/anthropic.claude-3-haiku-...`."""
    env: tuple[str, ...] = ()
    """Names of the variables of this server's environment that LiteLLM's process gets: `ANTHROPIC_API_KEY`."""
    api_base: str | None = None
    """Another address than the provider's."""
    api_version: str | None = None
    """Azure's."""
    region: str | None = None
    """Bedrock's."""
    vertex_project: str | None = None
    vertex_location: str | None = None
    context_length: int | None = None
    """None: as LiteLLM's table of models has it."""
    budget: dict[str, Any] | str | None = None
    """As the engine `remote` has it. None: what the provider publishes of this model, else `as-is` if it can see."""
    max_pixels: int = 1_048_576
    """Of a picture that is served as it is."""
    max_images: int | None = None
    """None: the provider's published limit."""
    features: tuple[str, ...] | None = None
    """Of `FEATURES`. None: what LiteLLM's table has of this provider's parameters."""
    silence_s: float = 120.0
    total_s: float = 600.0

    def provider_arguments(self) -> dict[str, str]:
        """Of `litellm.acompletion`."""
        given = {
            "api_base": self.api_base,
            "api_version": self.api_version,
            "aws_region_name": self.region,
            "vertex_project": self.vertex_project,
            "vertex_location": self.vertex_location,
        }
        return {name: value for name, value in given.items() if value is not None}


def read_options(config: ModelConfig) -> LiteLLMOptions:
    """Raises `InvalidRequest` for what is unknown, of the wrong type or cannot be meant."""
    try:
        options = msgspec.convert(dict(config.options), LiteLLMOptions)
    except msgspec.ValidationError as error:
        raise wrong(f"{error}. Known: {', '.join(LiteLLMOptions.__struct_fields__)}.") from None
    if unknown := sorted(set(options.features or ()) - FEATURES):
        raise wrong(f"there is no feature {unknown[0]!r}. Known: {', '.join(sorted(FEATURES))}.")
    if not all(_VARIABLE.fullmatch(name) for name in options.env):
        # Which it is, is not repeated: it may be a key that stands where its name should.
        raise wrong("env takes names of environment variables, in capitals (ANTHROPIC_API_KEY), never their values.")
    if not (options.silence_s > 0 and options.total_s > 0 and options.max_pixels > 0):
        raise wrong("silence_s, total_s and max_pixels must be above 0.")
    return options
