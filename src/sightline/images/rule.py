"""What every rule from pixels to vision tokens answers. cells.py, tiles.py, anyres.py, published.py hold the rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, TypeAlias

import msgspec

from sightline.errors import ImageTooSmall

if TYPE_CHECKING:  # the decoder processes start without numpy, which types imports
    from collections.abc import Callable
    from typing import Self

    from sightline.types import Detail, ImageRef

MAX_RATIO = 200
"""Longer side to shorter side; the limit of Qwen2-VL's `smart_resize`, and so of every model here: a picture that one
engine refuses should not be a matter of luck on another."""

Filter: TypeAlias = Literal["bicubic", "bilinear", "lanczos"]
"""How a picture is resized: Pillow's names, antialiased."""

LOW_DETAIL = 4
"""`detail: low` is a picture of at most a fourth of the model's pixels."""


class Served(NamedTuple):
    """What becomes of a picture: the size in pixels at which an engine receives it, and the tokens it costs there."""

    width: int
    height: int
    tokens: int


class Rule(msgspec.Struct, frozen=True, tag=True):
    """How large a family of models is given a picture, and what it costs there.

    Sizes are those of the upright picture: not every rule treats both sides alike. Tokens are all that the one
    placeholder of a picture in a prompt becomes, so that a prompt costs its text plus its pictures.
    """

    verified: ClassVar[bool] = True
    """Whether the rule was checked against the program that applies it; else it is what a vendor's page says."""
    resample: ClassVar[Filter] = "bicubic"
    """With which the family's processor resizes."""

    def serve(self, width: int, height: int) -> Served:
        """How a picture of that size in pixels is served; a served size is served as it is.

        Raises `ImageTooSmall` for a ratio of sides over 200.
        """
        if max(width, height) > MAX_RATIO * min(width, height):
            raise ImageTooSmall(
                f"this picture is {width} x {height} pixels, one side more than {MAX_RATIO} times the other. "
                "Crop it or cut it into pieces."
            )
        served = self.fit(width, height)
        return Served(*served, self.tokens(*served))

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """The served size (width, height) in pixels of a picture that `serve` does not refuse."""
        raise NotImplementedError

    def tokens(self, width: int, height: int) -> int:
        """Vision tokens of a picture served at this size in pixels (what `serve` gave)."""
        raise NotImplementedError

    @property
    def largest_tokens(self) -> int:
        """No picture costs more."""
        raise NotImplementedError

    def narrowed(
        self, detail: Detail = "auto", *, max_pixels: int | None = None, min_pixels: int | None = None
    ) -> Self:
        """This rule, narrowed to what a request, a model's configuration or an operator asks; never wider."""
        raise NotImplementedError

    def at_most(self, tokens: int) -> Self | None:
        """This rule, narrowed so that no picture costs more than `tokens`, each as large as the rule allows.

        None where no narrowing of this rule promises that.
        """
        raise NotImplementedError

    def for_picture(self, ref: ImageRef) -> Self:
        """This rule, narrowed to what the request asks of one picture."""
        return self.narrowed(ref.detail, max_pixels=ref.max_pixels, min_pixels=ref.min_pixels)


class FixedTokens(Rule, frozen=True):
    """A rule by which every picture costs the same: no request and no context can change that."""

    image_tokens: int

    def tokens(self, width: int, height: int) -> int:
        return self.image_tokens

    @property
    def largest_tokens(self) -> int:
        return self.image_tokens

    def narrowed(
        self, detail: Detail = "auto", *, max_pixels: int | None = None, min_pixels: int | None = None
    ) -> Self:
        """This rule: nothing that can be asked has an effect."""
        return self

    def at_most(self, tokens: int) -> Self | None:
        return self if self.image_tokens <= tokens else None


def shrunk(width: int, height: int, allowed: Callable[[int, int], bool]) -> tuple[int, int]:
    """The largest size of this shape, up to this size, that is `allowed`.

    `allowed(width, height)` must hold for every size below one for which it holds; where it does not, the size found
    may not be the largest. The last resort, a longer side of one pixel, is not asked about.
    """
    if allowed(width, height):
        return width, height
    longer = max(width, height)

    def scaled(long: int) -> tuple[int, int]:
        short = -(-long // MAX_RATIO)  # rounding must not make a strip of it that would be refused
        return max(short, round(width * long / longer)), max(short, round(height * long / longer))

    fits, exceeds = 1, longer
    while exceeds - fits > 1:
        middle = (fits + exceeds) // 2
        fits, exceeds = (middle, exceeds) if allowed(*scaled(middle)) else (fits, middle)
    return scaled(fits)
