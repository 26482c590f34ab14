"""How large each picture of a request is given to the model: what was asked, and what the context has room for. Pure.

picture_budget   the model's rule, the operator's settings, the request  -> the budget of one picture
Room.fit         sizes and budgets, and what the text leaves             -> budgets that fit together
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from sightline.config import PictureSize
from sightline.errors import ContextLengthExceeded
from sightline.images.budget import VisionBudget
from sightline.types import Detail, ImageRef

Size = tuple[int, int]
"""Width and height in pixels, upright."""

ANSWER_TOKENS = 256
"""Kept free for an answer whose length the request does not bound, when pictures are scaled to fit; but no more than
an eighth of the context. A request is not refused for want of them."""
_ANSWER_SHARE = 8
_KEPT = 256
"""Budgets that are not worked out again: most requests ask for nothing of their own."""


def picture_budget(vision: VisionBudget, ref: ImageRef, model: PictureSize, everywhere: PictureSize) -> VisionBudget:
    """The budget of one picture, before anybody asks whether the context has room for it.

    `detail` is the picture's own, else the model's, else the server's; `auto` is what nobody asked for.
    `max_pixels` and `min_pixels` bind in the order server, model, picture: each can only narrow what the one before
    left, and the model's own range binds all. So an operator's bounds are never exceeded by a client, and a value
    outside of the range that is left counts as its nearer end. Where a maximum and a minimum of one level contradict
    each other the maximum wins. `low` is a fourth of what the operator leaves.
    """
    detail = ref.detail
    for operator in (model, everywhere):
        detail = operator.detail if detail == "auto" else detail
    return _narrowed(vision, everywhere, model, detail, ref.max_pixels, ref.min_pixels)


@lru_cache(maxsize=_KEPT)
def _narrowed(
    vision: VisionBudget,
    everywhere: PictureSize,
    model: PictureSize,
    detail: Detail,
    max_pixels: int | None,
    min_pixels: int | None,
) -> VisionBudget:
    for operator in (everywhere, model):
        vision = vision.narrowed(max_pixels=operator.max_pixels, min_pixels=operator.min_pixels)
    return vision.narrowed(detail, max_pixels=max_pixels, min_pixels=min_pixels)


@lru_cache(maxsize=_KEPT)
def _largest_tokens(budget: VisionBudget) -> int:
    return budget.largest_tokens


@dataclass(frozen=True, slots=True)
class Room:
    """What a context has room for, in tokens."""

    context: int
    text: int
    """What the prompt takes beside its pictures."""
    max_tokens: int | None
    """The answer's bound, if the request has one."""
    exact: bool = True
    """False: `text` is an estimate, which may guide but refuses nothing."""

    @property
    def answer(self) -> int:
        """Kept free for the answer."""
        return min(ANSWER_TOKENS, self.context // _ANSWER_SHARE) if self.max_tokens is None else self.max_tokens

    def holds_any(self, budgets: Iterable[VisionBudget]) -> bool:
        """Whether pictures of these budgets fit whatever their sizes."""
        return sum(map(_largest_tokens, budgets)) <= self._for_pictures

    def fit(self, sizes: Sequence[Size], budgets: Sequence[VisionBudget]) -> tuple[VisionBudget, ...]:
        """The budgets by which pictures of these original sizes fit together: each its own where they do; else, for
        the pictures that would cost more than a common number of tokens, their own narrowed to that number, which is
        as large as the room allows.

        Where only an answer without a bound would have less room than is kept for it, the smallest pictures are
        served. Raises `ContextLengthExceeded` where not even those fit; `ImageTooSmall` as `VisionBudget.serve`.
        """
        pictures = Counter(zip(sizes, budgets, strict=True))
        if _cost(pictures, cap := _dearest(pictures)) <= self._for_pictures:
            return tuple(budgets)
        fits = 0
        while cap - fits > 1:
            middle = (fits + cap) // 2
            fits, cap = (middle, cap) if _cost(pictures, middle) <= self._for_pictures else (fits, middle)
        smallest = _cost(pictures, fits)
        if smallest > self._for_pictures + (self.answer - 1 if self.max_tokens is None else 0) and self.exact:
            raise self._exceeded(smallest)
        return tuple(_capped(size, budget, fits) for size, budget in zip(sizes, budgets, strict=True))

    @property
    def _for_pictures(self) -> int:
        return self.context - self.text - self.answer

    def _exceeded(self, smallest: int) -> ContextLengthExceeded:
        answer = "" if self.max_tokens is None else f", the answer up to {self.max_tokens}"
        return ContextLengthExceeded(
            f"This model's context holds {self.context} tokens. The text takes {self.text}{answer}, and the pictures "
            f"{smallest} at their smallest. Shorten the text, send fewer pictures, or lower max_tokens.",
            param="messages",
        )


def _dearest(pictures: Iterable[tuple[Size, VisionBudget]]) -> int:
    return max((budget.serve(*size).tokens for size, budget in pictures), default=0)


def _cost(pictures: Counter[tuple[Size, VisionBudget]], cap: int) -> int:
    return sum(times * _capped(size, budget, cap).serve(*size).tokens for (size, budget), times in pictures.items())


def _capped(size: Size, budget: VisionBudget, cap: int) -> VisionBudget:
    """The budget itself for a picture that costs no more than `cap`; as narrow as it can be where `cap` is narrower."""
    if budget.serve(*size).tokens <= cap:
        return budget
    return budget.at_most(cap) or _narrowest(budget)


@lru_cache(maxsize=256)
def _narrowest(budget: VisionBudget) -> VisionBudget:
    """The budget narrowed to the fewest tokens that it can promise."""
    narrowest, too_few, enough = budget, 0, budget.largest_tokens
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        narrowed = budget.at_most(middle)
        if narrowed is None:
            too_few = middle
        else:
            narrowest, enough = narrowed, middle
    return narrowest
