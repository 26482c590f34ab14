"""The `sightline` object of replies: what became of each picture, which engine answered, where the time went; and
what the response headers say of it.

The same in every OpenAI-shaped dialect (wire contract, section 13).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal
from urllib.parse import quote

import msgspec
from msgspec import UNSET, UnsetType

from sightline.api.collected import to_usage
from sightline.items import Prepared, ServedImage
from sightline.types import Finish, TokenCount


class ImageReport(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    width: int
    height: int
    served_width: int
    served_height: int
    tokens: int
    digest: str
    cached: bool
    """Its embedding was at hand."""
    scaled_to_fit: Literal[True] | UnsetType = UNSET
    """There where the context had no room for the picture at the size that its budget would have given it."""


class TimingReport(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds. Of several choices, which run side by side, the slowest counts."""

    fetch_s: float
    decode_s: float
    """Of picture files; `decode_per_token_s` is the model's."""
    queue_s: float
    encode_s: float
    prefill_s: float
    decode_per_token_s: float


class InputImage(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    tokens: int
    served_width: int
    served_height: int
    scaled_to_fit: Literal[True] | UnsetType = UNSET


class InputTokens(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `/v1/responses/input_tokens`, of which all but the first two fields is ours, and to
    `/v1/chat/completions/input_tokens`, which is ours and has its shape."""

    object: Literal["input_tokens", "response.input_tokens"]
    input_tokens: int
    text_tokens: int
    image_tokens: int
    images: list[InputImage]


class Extension(msgspec.Struct, frozen=True, kw_only=True):
    engine: str
    path: tuple[str, ...]
    images: list[ImageReport]
    timing: TimingReport


def to_input_tokens(
    kind: Literal["input_tokens", "response.input_tokens"], count: TokenCount, images: Sequence[ServedImage]
) -> InputTokens:
    return InputTokens(
        object=kind,
        input_tokens=count.prompt_tokens,
        text_tokens=count.text_tokens,
        image_tokens=sum(count.image_tokens),
        images=[
            InputImage(
                index=index,
                tokens=image.tokens,
                served_width=image.served_width,
                served_height=image.served_height,
                scaled_to_fit=True if image.scaled_to_fit else UNSET,
            )
            for index, image in enumerate(images)
        ],
    )


def to_extension(prepared: Prepared, finishes: Sequence[Finish]) -> Extension:
    cached = to_usage(finishes).images_cached
    images = [
        ImageReport(
            index=index,
            width=image.width,
            height=image.height,
            served_width=image.served_width,
            served_height=image.served_height,
            tokens=image.tokens,
            digest=image.digest,
            cached=index < len(cached) and cached[index],
            scaled_to_fit=True if image.scaled_to_fit else UNSET,
        )
        for index, image in enumerate(prepared.images)
    ]
    return Extension(engine=prepared.engine, path=prepared.path, images=images, timing=_to_timing(prepared, finishes))


def _to_timing(prepared: Prepared, finishes: Sequence[Finish]) -> TimingReport:
    timings = [f.timing for f in finishes]
    return TimingReport(
        fetch_s=_rounded(prepared.fetch_s),
        decode_s=_rounded(prepared.decode_s),
        queue_s=_rounded(prepared.queue_s + max(t.queue_s for t in timings)),
        encode_s=_rounded(max(t.encode_s for t in timings)),
        prefill_s=_rounded(max(t.prefill_s for t in timings)),
        # The first token is prefill's.
        decode_per_token_s=_rounded(max(f.timing.decode_s / max(1, f.usage.completion_tokens - 1) for f in finishes)),
    )


def _rounded(seconds: float) -> float:
    return round(seconds, 6)


def to_headers(engine: str, path: Sequence[str]) -> dict[str, str]:
    """`path` is told where it has more than one stop: something was tried again or fell back."""
    headers = {"x-sightline-engine": quote(engine)}
    if len(path) > 1:
        headers["x-sightline-path"] = ", ".join(quote(replica, safe="/:@") for replica in path)
    return headers
