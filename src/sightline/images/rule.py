"""What every rule from pixels to vision tokens answers. The rules themselves: cells.py, tiles.py, published.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from sightline.errors import ImageTooSmall

if TYPE_CHECKING:  # the decoder processes start without numpy, which types imports
    from typing import Self

    from sightline.types import Detail, ImageRef

MAX_RATIO = 200
"""Longer side to shorter side; the limit of Qwen2-VL's `smart_resize`, and so of every model here: a picture that one
engine refuses should not be a matter of luck on another."""

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
