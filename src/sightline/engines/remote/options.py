"""What an operator says of a server: `ModelConfig.options`, checked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec

from sightline.config import ModelConfig, environment
from sightline.engines import FEATURES
from sightline.engines.remote.kinds import KINDS, Kind
from sightline.engines.remote.pictures import KEPT_BYTES
from sightline.errors import InvalidRequest
from sightline.images.budget import VisionBudget
from sightline.images.checkpoint import BudgetError
from sightline.images.checkpoint import read_budget as budget_of_checkpoint
from sightline.images.published import ClaudePatches, published_budget

AS_IS = "as-is"
_KEY_PREFIX = "SIGHTLINE_"
_KEY = re.compile(r"[\x21-\x7e]+")


RemoteWork = Literal["messages", "completions", "embeddings"]


class RemoteOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelConfig.options` of the engine `remote`."""

    base_url: str
    """As OpenAI's SDKs take it, with the version: `http://localhost:8000/v1`, OVMS's `http://localhost:8000/v3`."""
    kind: str = "openai"
    """Of `KINDS`: which server it is."""
    model: str | None = None
    """The server's name of the model; None: ours."""
    api_key_env: str | None = None
    """The environment variable that holds the key; begins with `SIGHTLINE_`."""
    context_length: int | None = None
    """Prompt and completion tokens together; None: as the server tells, where it does."""
    budget: dict[str, Any] | str | None = None
    """How pixels become tokens there: a budget's fields with its `type`, a provider's name of a model whose budget it
    publishes (`gpt-4.1-mini`), or `as-is`. None: as the checkpoint says; without one, the model cannot see."""
    checkpoint: str | None = None
    """A directory with the model's configuration and tokenizer: `budget` and `special_tokens` are read from there."""
    max_pixels: int = 1_048_576
    """Of a picture that is served as it is; larger ones are reduced to this."""
    picture_cache_bytes: int = KEPT_BYTES
    """Of encoded pictures kept for the next request that shows them; 0: none are."""
    max_images: int | None = None
    features: tuple[str, ...] | None = None
    """Of `FEATURES`: what this server honours; None: what its kind does."""
    work: tuple[RemoteWork, ...] | None = None
    """What the model does there: `messages`, `completions` (plain text), `embeddings`. None: as the server tells, or
    as its kind does."""
    special_tokens: tuple[str, ...] = ()
    """Texts that the server would take for special tokens, wherever they stand; they are broken up."""
    ca_file: str | None = None
    """Certificate authorities, in PEM, for an https: address that the system's do not vouch for."""
    connect_s: float = 5.0
    silence_s: float = 120.0
    """The longest that a server may say nothing."""
    total_s: float = 600.0
    """For one request, the wait for its turn included. The server is told what is left of it."""

    @property
    def row(self) -> Kind:
        return KINDS[self.kind]


OptionsT = TypeVar("OptionsT", bound=RemoteOptions)


def read_options(config: ModelConfig, kind: type[OptionsT]) -> OptionsT:
    """Raises `InvalidRequest` for what is unknown, of the wrong type or cannot be meant."""
    try:
        options = msgspec.convert(dict(config.options), kind)
    except msgspec.ValidationError as error:
        raise wrong(f"{error}. Known: {', '.join(kind.__struct_fields__)}.") from None
    check_address(options.base_url)
    if options.kind not in KINDS:
        raise wrong(f"kind is one of {', '.join(KINDS)}, not {options.kind!r}.")
    if unknown := sorted(set(options.features or ()) - FEATURES):
        raise wrong(f"there is no feature {unknown[0]!r}. Known: {', '.join(sorted(FEATURES))}.")
    numbers = {name: getattr(options, name) for name in ("connect_s", "silence_s", "total_s", "max_pixels")}
    numbers["context_length"] = 1 if options.context_length is None else options.context_length
    for name, value in numbers.items():
        if not value > 0:
            raise wrong(f"{name} must be above 0, not {value}.")
    read_budget(options)
    return options


def check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    plain = not (parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not plain or not url.isascii():
        raise wrong(
            "base_url must be an address such as http://localhost:8000/v1, without a user, a query or a fragment; "
            "a key goes into the environment (api_key_env)."
        )


def read_budget(options: RemoteOptions) -> VisionBudget | None:
    """None: the model cannot see. Raises `InvalidRequest` for a budget that is none.

    `as-is` changes the size of too large a picture only. What one costs is unknown; the guess is a rule that has a
    token for each 28 x 28 pixels begun, as most families have nearly.
    """
    if options.budget is None:
        return _read_checkpoint_budget(options.checkpoint)
    if options.budget == AS_IS:
        return ClaudePatches(
            longest_edge=options.max_pixels,
            most_patches=-(-options.max_pixels // 28**2),
            max_pixels=options.max_pixels,
        )
    if isinstance(options.budget, str):
        if (published := published_budget(options.budget)) is None:
            raise wrong(
                f"no provider publishes what pictures cost {options.budget!r}; use {AS_IS!r}, or a budget's fields."
            )
        return published
    try:
        return msgspec.convert(options.budget, VisionBudget)  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        raise wrong(
            f"budget is {AS_IS!r}, a provider's name of a model, or an object such as "
            f'{{"type": "CellBudget", "cell": 28, "min_pixels": 3136, "max_pixels": 1003520}} ({error}).'
        ) from None


def _read_checkpoint_budget(directory: str | None) -> VisionBudget | None:
    if directory is None:
        return None
    try:
        return budget_of_checkpoint(Path(directory))
    except BudgetError as error:
        raise wrong(f"the checkpoint does not tell how the model sees: {error} Set the option budget.") from None


def read_specials(options: RemoteOptions) -> tuple[str, ...]:
    """Texts that the model's tokenizer takes for tokens of their own: `added_tokens` of the checkpoint's tokenizer."""
    if options.checkpoint is None:
        return options.special_tokens
    try:
        tokenizer = json.loads((Path(options.checkpoint) / "tokenizer.json").read_text(encoding="utf-8"))
        added = tuple(str(token["content"]) for token in tokenizer["added_tokens"])
    except (OSError, ValueError, KeyError, TypeError):
        raise wrong(
            "the checkpoint has no tokenizer.json that tells its special tokens; name them in special_tokens "
            "and leave out checkpoint."
        ) from None
    return (*options.special_tokens, *added)


def read_key(options: RemoteOptions) -> str | None:
    """Raises `InvalidRequest` for a variable that is not set, or is not ours to pass on."""
    name = options.api_key_env
    if name is None:
        return None
    if not name.startswith(_KEY_PREFIX):
        raise wrong(
            f"api_key_env names a variable that begins with {_KEY_PREFIX}, so that nothing else of the environment can "
            f"leave this machine: {_KEY_PREFIX}UPSTREAM_KEY, for example."
        )
    key = environment(name.removeprefix(_KEY_PREFIX))
    if not key or not _KEY.fullmatch(key):
        raise wrong(f"the environment variable {name} (api_key_env) is not set, or holds what no key can.")
    return key


def wrong(problem: str) -> InvalidRequest:
    return InvalidRequest(f"The options of this model's engine: {problem}", param="options")
