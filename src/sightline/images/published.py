"""What vendors say that a picture costs, for engines that talk to them. None of it was checked against their APIs.

Sources, as read in November 2026:

- OpenAI, "Images and vision", https://platform.openai.com/docs/guides/images-vision (tiles; patches and multipliers).
  Users measured 1.2 tokens a patch for gpt-5-mini where the page says 1.62:
  https://community.openai.com, "GPT-5-mini image input token calculation discrepancy", June 2026.
- Anthropic, "Images and vision" and "Coordinates and bounding boxes",
  https://platform.claude.com/docs/en/build-with-claude/vision (a token for each 28 x 28 pixels begun; their page of
  before said width x height / 750, which is within 5 % of it for pictures over 0.2 megapixels).
- Google, "Image understanding", https://ai.google.dev/gemini-api/docs/image-understanding (tiles) and "Media
  resolution", https://ai.google.dev/gemini-api/docs/media-resolution.

A vendor shrinks large pictures itself. Served is the size that its page says it would shrink to, so that nothing is
sent for nothing; a picture is never enlarged. Rounding is not on any page: sizes are rounded down, tokens up.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, ClassVar, TypeVar

import msgspec

from sightline.images.rule import Rule, shrunk

if TYPE_CHECKING:
    from sightline.images.budget import VisionBudget
    from sightline.types import Detail

_P = TypeVar("_P", bound="PublishedRule")


class PublishedRule(Rule, frozen=True, kw_only=True):
    """What the vendors' rules share: a size that the vendor shrinks to, and two ways to send less."""

    verified: ClassVar[bool] = False

    low: bool = False
    """`detail: low` (Google: `MEDIA_RESOLUTION_LOW`) is part of the call that the engine makes."""
    max_pixels: int | None = None
    max_tokens: int | None = None

    def fit(self, width: int, height: int) -> tuple[int, int]:
        return shrunk(*self._vendor_size(width, height), self._is_within)

    def _vendor_size(self, width: int, height: int) -> tuple[int, int]:
        """The size to which the vendor would shrink the picture."""
        raise NotImplementedError

    def _is_within(self, width: int, height: int) -> bool:
        if self.max_tokens is not None and self.tokens(width, height) > self.max_tokens:
            return False
        return self.max_pixels is None or width * height <= self.max_pixels

    @property
    def largest_tokens(self) -> int:
        return self._vendor_most if self.max_tokens is None else min(self._vendor_most, self.max_tokens)

    @property
    def _vendor_most(self) -> int:
        raise NotImplementedError

    def narrowed(
        self: _P, detail: Detail = "auto", *, max_pixels: int | None = None, min_pixels: int | None = None
    ) -> _P:
        """`low` is the vendor's own; `auto`, `high` and `original` are its full size. `max_pixels` bounds the picture
        that is sent; `min_pixels` has no effect, because nothing is enlarged."""
        narrowed = msgspec.structs.replace(self, low=True) if detail == "low" else self
        if max_pixels is None or (self.max_pixels is not None and self.max_pixels <= max_pixels):
            return narrowed
        return msgspec.structs.replace(narrowed, max_pixels=max_pixels)

    def at_most(self: _P, tokens: int) -> _P | None:
        """This rule with smaller pictures, else with low detail, else None."""
        for rule in (self, msgspec.structs.replace(self, low=True)):
            if rule.largest_tokens <= tokens:
                return rule
            if rule.tokens(1, 1) <= tokens:
                return msgspec.structs.replace(rule, max_tokens=tokens)
        return None


class OpenAITiles(PublishedRule, frozen=True, kw_only=True):
    """Into 2,048 x 2,048, then the shorter side to 768, then `tile_tokens` for each 512 x 512 begun and `base_tokens`;
    low detail is 512 x 512 for `base_tokens` alone."""

    base_tokens: int
    tile_tokens: int

    def _vendor_size(self, width: int, height: int) -> tuple[int, int]:
        if self.low:
            return _into(width, height, max(width, height) / 512)
        width, height = _into(width, height, max(width, height) / 2048)
        return _into(width, height, min(width, height) / 768)

    def tokens(self, width: int, height: int) -> int:
        tiles = 0 if self.low else math.ceil(width / 512) * math.ceil(height / 512)
        return self.base_tokens + tiles * self.tile_tokens

    @property
    def _vendor_most(self) -> int:
        return self.base_tokens + (0 if self.low else 8 * self.tile_tokens)


class OpenAIPatches(PublishedRule, frozen=True, kw_only=True):
    """A token for each 32 x 32 begun, at most 1,536, times the model's multiplier.

    A larger picture is shrunk until the patches fit, and a little more, until one side is whole patches. Low detail is
    taken to be 512 x 512, as for tiles; the page does not say.
    """

    percent: int
    """The multiplier, times 100."""

    def _vendor_size(self, width: int, height: int) -> tuple[int, int]:
        if self.low:
            return _into(width, height, max(width, height) / 512)
        if math.ceil(width / 32) * math.ceil(height / 32) <= 1536:
            return width, height
        scale = math.sqrt(1536 * 32**2 / (width * height))
        whole = min(math.floor(side * scale / 32) * 32 / side for side in (width, height))
        return max(1, math.floor(width * whole + 1e-6)), max(1, math.floor(height * whole + 1e-6))

    def tokens(self, width: int, height: int) -> int:
        return -(-math.ceil(width / 32) * math.ceil(height / 32) * self.percent // 100)

    @property
    def _vendor_most(self) -> int:
        return -(-(256 if self.low else 1536) * self.percent // 100)


class ClaudePatches(PublishedRule, frozen=True, kw_only=True):
    """A token for each 28 x 28 begun, of the largest picture of the same shape within two limits.

    There is no low detail: `low` changes nothing.
    """

    longest_edge: int
    most_patches: int

    def _vendor_size(self, width: int, height: int) -> tuple[int, int]:
        return shrunk(
            width, height, lambda *size: max(size) <= self.longest_edge and self.tokens(*size) <= self.most_patches
        )

    def tokens(self, width: int, height: int) -> int:
        return math.ceil(width / 28) * math.ceil(height / 28)

    @property
    def _vendor_most(self) -> int:
        return self.most_patches


class GeminiTiles(PublishedRule, frozen=True, kw_only=True):
    """258 tokens up to 384 x 384; else 258 for each square of side min(w, h) / 1.5, within 256..768, that is begun.

    Pictures beyond 3,072 x 3,072 are shrunk into it, as the page for Gemini 1.5 said. Low detail is 64 tokens.
    """

    def _vendor_size(self, width: int, height: int) -> tuple[int, int]:
        return _into(width, height, max(width, height) / 3072)

    def tokens(self, width: int, height: int) -> int:
        if self.low:
            return 64
        if max(width, height) <= 384:
            return 258
        unit = max(256, min(768, math.floor(min(width, height) / 1.5)))
        return 258 * math.ceil(width / unit) * math.ceil(height / unit)

    @property
    def _vendor_most(self) -> int:
        """Two rows of the smallest squares, which cost more than four by four of the largest."""
        return 64 if self.low else 258 * 2 * 12


class GeminiLevels(PublishedRule, frozen=True, kw_only=True):
    """1,120 tokens a picture, 280 in low detail, whatever its size. Nothing is shrunk."""

    def _vendor_size(self, width: int, height: int) -> tuple[int, int]:
        return width, height

    def tokens(self, width: int, height: int) -> int:
        return 280 if self.low else 1120

    @property
    def _vendor_most(self) -> int:
        return self.tokens(1, 1)


_CLAUDE = ClaudePatches(longest_edge=1568, most_patches=1568)
_CLAUDE_HIGH = ClaudePatches(longest_edge=2576, most_patches=4784)

_MODELS: tuple[tuple[str, PublishedRule], ...] = (
    (r"gpt-4o|gpt-4\.1|gpt-4\.5-preview|gpt-4-turbo|chatgpt-4o", OpenAITiles(base_tokens=85, tile_tokens=170)),
    (r"gpt-4o-mini", OpenAITiles(base_tokens=2833, tile_tokens=5667)),
    (r"o1|o1-pro|o3", OpenAITiles(base_tokens=75, tile_tokens=150)),
    (r"gpt-5|gpt-5-chat", OpenAITiles(base_tokens=70, tile_tokens=140)),
    (r"computer-use-preview", OpenAITiles(base_tokens=65, tile_tokens=129)),
    (r"gpt-4\.1-mini|gpt-5-mini", OpenAIPatches(percent=162)),
    (r"gpt-4\.1-nano|gpt-5-nano", OpenAIPatches(percent=246)),
    (r"o4-mini", OpenAIPatches(percent=172)),
    (r"claude-3(-[57])?-(opus|sonnet|haiku)", _CLAUDE),
    (r"claude-(opus|sonnet|haiku)-4(-[0156])?", _CLAUDE),
    (r"claude-(opus|sonnet|haiku)-4-[78]", _CLAUDE_HIGH),
    (r"gemini-(1\.5|2\.0|2\.5)-(pro|flash|flash-lite|flash-8b)", GeminiTiles()),
    (r"gemini-3(\.\d)?-(pro|flash|flash-lite)", GeminiLevels()),
)
"""Names without their date, and what pictures cost there."""

_SUFFIX = r"(-\d{4}-\d{2}-\d{2}|-\d{8}|-latest|-preview(-\d{2}-\d{2,4})?|-00\d|@\d{8})+$"


def published_budget(model_name: str) -> VisionBudget | None:
    """The rule that the vendor of this model publishes; None for a name that no page here is about.

    A router's prefix (`openai/gpt-4o`) and a version's suffix (`gpt-4o-2024-08-06`) are left out of account, but a name
    is never taken for a similar one: a new model may well count differently.
    """
    name = model_name.rsplit("/", 1)[-1].lower()
    for candidate in (name, re.sub(_SUFFIX, "", name)):
        for pattern, rule in _MODELS:
            if re.fullmatch(pattern, candidate):
                return rule  # type: ignore[return-value]  # each entry is one of the union
    return None


def _into(width: int, height: int, shrink: float) -> tuple[int, int]:
    """Divided by `shrink`, where that makes it smaller."""
    if shrink <= 1:
        return width, height
    return max(1, math.floor(width / shrink + 1e-6)), max(1, math.floor(height / shrink + 1e-6))
