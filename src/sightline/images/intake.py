"""From the pictures that a request names to the pictures that an engine sees: `ImageRef` to `Image`.

Each is fetched, then decoded in the pool; the same file at the same budget, wherever it stands in the requests under
way, is decoded once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from sightline.config import FetchPolicy, ImageLimits
from sightline.errors import ImageError, UnsupportedFeature
from sightline.images.budget import VisionBudget
from sightline.images.codec import Picture
from sightline.images.decoder import DecoderPool
from sightline.images.fetch import Fetcher
from sightline.types import Image, ImageRef, Pixels


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """A picture as the model sees it, and what it took in seconds (waiting for a decoder is in none of them)."""

    image: Image
    fetch_s: float
    """The download with its wait for a turn, or base64; and the digest."""
    decode_s: float
    resize_s: float


_Decoded = tuple[Picture, Pixels]
_Key = tuple[str, VisionBudget]
"""Digest of the file, and the budget of this picture in this request: together they decide every pixel."""


class Intake:
    """Life: made -> `start` -> any number of `resolve`, concurrently -> `close`. Used from one event loop."""

    def __init__(self, limits: ImageLimits, policy: FetchPolicy | None = None) -> None:
        """Without a policy nothing is downloaded."""
        self._limits = limits
        self._fetcher = Fetcher(limits, policy)
        self._decoders = DecoderPool(limits)
        self._under_way: dict[_Key, _Shared] = {}

    async def start(self) -> None:
        await self._decoders.start()

    async def close(self) -> None:
        """Ends the decoders; what is being resolved raises `EngineUnavailable`. Idempotent."""
        await self._fetcher.close()
        await self._decoders.close()

    async def resolve(
        self, refs: Sequence[ImageRef], budget: VisionBudget, *, tenant: str = ""
    ) -> tuple[ResolvedImage, ...]:
        """The pictures in the order of `refs`, each at the size that `budget.for_picture` gives it.

        Raises the error of the first bad picture in that order, whichever failed first, with its `param`: an
        `ImageError` of any kind; `UnsupportedFeature` for more than `limits.max_images`; `EngineUnavailable` once
        closed. Cancelling it gives up what only it was waiting for.
        """
        if len(refs) > self._limits.max_images:
            raise UnsupportedFeature(
                f"A request may have at most {self._limits.max_images} pictures; this one has {len(refs)}.",
                param=refs[self._limits.max_images].param,
            )
        with ExitStack() as shares:  # held until every picture is there, so that a twin never comes too late
            tasks = [asyncio.create_task(self._resolve_one(ref, budget, tenant, shares)) for ref in refs]
            try:
                return tuple([await task for task in tasks])
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _resolve_one(self, ref: ImageRef, budget: VisionBudget, tenant: str, shares: ExitStack) -> ResolvedImage:
        try:
            began = time.perf_counter()
            file = await self._fetcher.fetch(ref.source, tenant=tenant)
            fetch_s = time.perf_counter() - began
            shared = self._share((file.digest, budget.for_picture(ref)), file.content)
            shares.callback(self._release, shared)
            picture, pixels = await asyncio.shield(shared.decoding)
        except ImageError as error:
            raise type(error)(f"{ref.param}: {error.message}", param=ref.param) from None
        image = Image(pixels, file.digest, picture.width, picture.height, picture.media_type, len(file.content))
        return ResolvedImage(image, fetch_s, picture.decode_s, picture.resize_s)

    def _share(self, key: _Key, content: bytes) -> _Shared:
        shared = self._under_way.get(key)
        if shared is None:
            shared = _Shared(key, asyncio.create_task(self._decoders.decode(content, key[1])))
            self._under_way[key] = shared
        shared.holders += 1
        return shared

    def _release(self, shared: _Shared) -> None:
        shared.holders -= 1
        if shared.holders == 0:
            del self._under_way[shared.key]
            shared.decoding.cancel()


@dataclass(slots=True)
class _Shared:
    """A decoding under way, for every request that holds it."""

    key: _Key
    decoding: asyncio.Task[_Decoded]
    holders: int = 0
