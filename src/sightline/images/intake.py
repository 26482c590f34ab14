"""From the pictures that a request names to the pictures that an engine sees: `ImageRef` to `Image`.

Each is fetched, then decoded in the pool. The same file at the same budget for the same tenant is decoded once,
wherever it stands in the requests under way, and not again as long as the cache holds it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sightline import metrics, tracing
from sightline.config import FetchPolicy, ImageLimits
from sightline.errors import ImageError, ImageFileNotFound, UnsupportedFeature
from sightline.images.budget import VisionBudget
from sightline.images.cache import Decoded, Key, PictureCache
from sightline.images.decoder import DecoderPool
from sightline.images.fetch import Fetcher, File
from sightline.images.plan import Room, Size
from sightline.types import FileId, Image, ImageRef

log = logging.getLogger(__name__)

T = TypeVar("T")
ReadKept = Callable[[str, str, int], Awaitable[bytes]]
"""From a file's id, the tenant and the most bytes to the file. Raises an `ImageError`."""


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """A picture as the model sees it, and what it took in seconds (waiting for a decoder is in none of them)."""

    image: Image
    fetch_s: float
    """The download with its wait for a turn, or base64; the digest; and making a smaller JPEG, where that is wanted."""
    decode_s: float
    """0 for a picture that was at hand, as is `resize_s`."""
    resize_s: float
    scaled_to_fit: bool = False
    """Served smaller than its own budget would have had it."""


class Holder(Protocol):
    """Who has a request's pictures, in another process."""

    async def resolve(self, budgets: Sequence[VisionBudget], room: Room | None) -> tuple[ResolvedImage, ...]:
        """All of them. Raises as `Intake.resolve`."""
        ...


class Elsewhere(str):
    """As the source of pictures that another process has. Requests that show the same have equal ones."""

    holder: Holder


@dataclass(frozen=True, slots=True)
class _Fetched:
    ref: ImageRef
    file: File
    fetch_s: float


class Intake:
    """Life: made -> `start` -> any number of `resolve`, concurrently -> `close`. Used from one event loop."""

    def __init__(self, limits: ImageLimits, policy: FetchPolicy | None = None) -> None:
        """Without a policy nothing is downloaded."""
        self._limits = limits
        self._fetcher = Fetcher(limits, policy)
        self._decoders = DecoderPool(limits)
        self._cache = PictureCache(limits.cache_bytes)
        self._under_way: dict[Key, _Shared] = {}
        self.read_kept: ReadKept | None = None
        """How a picture is read that is named by the id of a file; None: no files are kept here."""

    async def start(self) -> None:
        await self._decoders.start()

    async def close(self) -> None:
        """Ends the decoders; what is being resolved raises `EngineUnavailable`. Idempotent."""
        await self._fetcher.close()
        await self._decoders.close()
        self._cache.clear()

    async def resolve(
        self, refs: Sequence[ImageRef], budgets: Sequence[VisionBudget], *, tenant: str = "", room: Room | None = None
    ) -> tuple[ResolvedImage, ...]:
        """The pictures in the order of `refs`, each at the size that its budget gives it.

        With `room`, every picture is fetched and its header read before any is decoded, and they are served by
        budgets by which they fit in it together.

        Raises the error of the first bad picture in that order, whichever failed first, with its `param`: an
        `ImageError` of any kind; `UnsupportedFeature` for more than `limits.max_images`; `EngineUnavailable` once
        closed; what `Room.fit` raises. Cancelling it gives up what only it was waiting for.
        """
        if len(refs) > self._limits.max_images:
            raise UnsupportedFeature(
                f"A request may have at most {self._limits.max_images} pictures; this one has {len(refs)}.",
                param=refs[self._limits.max_images].param,
            )
        if refs and isinstance(source := refs[0].source, Elsewhere):
            return await source.holder.resolve(budgets, room)
        with ExitStack() as shares:  # held until every picture is there, so that a twin never comes too late

            async def fetch_and_decode(ref: ImageRef, budget: VisionBudget) -> ResolvedImage:
                return await self._decode(await self._fetch(ref, tenant), budget, tenant, shares)

            if room is None:
                at_hand = self._at_hand(refs, budgets, tenant)
                return at_hand or await _in_order(map(fetch_and_decode, refs, budgets))
            fetched = await _in_order(self._fetch(ref, tenant) for ref in refs)
            fitted = room.fit(await _in_order(map(self._inspect, fetched)), budgets)
            return await _in_order(
                self._decode(file, budget, tenant, shares, scaled_to_fit=budget is not own)
                for file, own, budget in zip(fetched, budgets, fitted, strict=True)
            )

    def _at_hand(
        self, refs: Sequence[ImageRef], budgets: Sequence[VisionBudget], tenant: str
    ) -> tuple[ResolvedImage, ...] | None:
        """All of them, without a task or a wait, if each came lately in the same words and its pixels are still kept;
        None: one did not."""
        pictures = []
        for ref, budget in zip(refs, budgets, strict=True):
            began = time.perf_counter()
            file = self._fetcher.known(ref.source, tenant) if ref.recompression is None else None
            if file is None or (decoded := self._cache.get(self._key(file, tenant, budget))) is None:
                return None
            pictures.append(_to_resolved(file, decoded, time.perf_counter() - began))
        for picture in pictures:
            tracing.stage("picture.fetch", picture.fetch_s, sightline__bytes=picture.image.num_bytes)
            _observe(picture, "hit")
        return tuple(pictures)

    def _key(self, file: File, tenant: str, budget: VisionBudget) -> Key:
        return Key(file.digest, tenant, budget, self._limits.background)

    # --- one picture ---------------------------------------------------------------------------------------------

    async def _fetch(self, ref: ImageRef, tenant: str) -> _Fetched:
        began = time.perf_counter()
        with _named(ref):
            source = await self._read_kept(ref.source, tenant) if isinstance(ref.source, FileId) else ref.source
            file = await self._fetcher.fetch(source, tenant=tenant)
            if (wanted := ref.recompression) is not None:
                _, jpeg = await self._decoders.recompress(file.content, wanted.max_side, wanted.quality)
                file = await self._fetcher.fetch(jpeg)
        fetch_s = time.perf_counter() - began
        tracing.stage("picture.fetch", fetch_s, sightline__bytes=len(file.content))
        return _Fetched(ref, file, fetch_s)

    async def _read_kept(self, file_id: FileId, tenant: str) -> bytes:
        if self.read_kept is None:
            raise ImageFileNotFound("no files are kept here; send the picture itself, as a data: URL.")
        return await self.read_kept(file_id, tenant, self._limits.max_bytes)

    async def _inspect(self, fetched: _Fetched) -> Size:
        with _named(fetched.ref):
            inspected = await self._decoders.inspect(fetched.file.content)
        return inspected.width, inspected.height

    async def _decode(
        self, fetched: _Fetched, budget: VisionBudget, tenant: str, shares: ExitStack, *, scaled_to_fit: bool = False
    ) -> ResolvedImage:
        file = fetched.file
        key = self._key(file, tenant, budget)
        decoded, result = self._cache.get(key), "hit"
        if decoded is None:
            result = "shared" if key in self._under_way else "miss"
            shared = self._share(key, file.content)
            shares.callback(self._release, shared)
            with _named(fetched.ref):
                decoded = await asyncio.shield(shared.decoding)
        resolved = _to_resolved(
            file, decoded, fetched.fetch_s, was_decoded=result == "miss", scaled_to_fit=scaled_to_fit
        )
        _observe(resolved, result)
        return resolved

    def _share(self, key: Key, content: bytes) -> _Shared:
        shared = self._under_way.get(key)
        if shared is None:
            shared = _Shared(key, asyncio.create_task(self._decode_and_keep(key, content)))
            self._under_way[key] = shared
        shared.holders += 1
        return shared

    async def _decode_and_keep(self, key: Key, content: bytes) -> Decoded:
        decoded = await self._decoders.decode(content, key.budget)
        self._cache.put(key, decoded)
        return decoded

    def _release(self, shared: _Shared) -> None:
        shared.holders -= 1
        if shared.holders == 0:
            del self._under_way[shared.key]
            shared.decoding.cancel()


@dataclass(slots=True)
class _Shared:
    """A decoding under way, for every request that holds it."""

    key: Key
    decoding: asyncio.Task[Decoded]
    holders: int = 0


@contextmanager
def _named(ref: ImageRef) -> Iterator[None]:
    """What is wrong with a picture is told with the place where it stood in the request."""
    try:
        yield
    except ImageError as error:
        raise type(error)(f"{ref.param}: {error.message}", param=ref.param) from None


async def _in_order(work: Iterable[Coroutine[object, object, T]]) -> tuple[T, ...]:
    """All of it at once; the results, or the first error, in the order given. Nothing of it outlives the call."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return tuple([await task for task in tasks])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _to_resolved(
    file: File, decoded: Decoded, fetch_s: float, *, was_decoded: bool = False, scaled_to_fit: bool = False
) -> ResolvedImage:
    """`was_decoded`: for this request."""
    picture, pixels = decoded
    image = Image(pixels, file.digest, picture.width, picture.height, picture.media_type, len(file.content))
    decode_s, resize_s = (picture.decode_s, picture.resize_s) if was_decoded else (0.0, 0.0)
    return ResolvedImage(image, fetch_s, decode_s, resize_s, scaled_to_fit)


_CACHE = {result: metrics.IMAGE_CACHE.labels(result) for result in ("hit", "miss", "shared")}
_FETCH, _DECODE, _RESIZE = map(metrics.IMAGE_STAGE_SECONDS.labels, ("fetch", "decode", "resize"))


def _observe(resolved: ResolvedImage, cache: str) -> None:
    """`cache`: "hit", "miss", or "shared" with a picture that was just being decoded."""
    image = resolved.image
    pixels = image.width * image.height
    _CACHE[cache].inc()
    _FETCH.observe(resolved.fetch_s)
    if cache == "miss":
        tracing.stage("picture.decode", resolved.decode_s, ended_s_ago=resolved.resize_s, sightline__pixels=pixels)
        tracing.stage("picture.resize", resolved.resize_s)
        _DECODE.observe(resolved.decode_s)
        _RESIZE.observe(resolved.resize_s)
    metrics.IMAGE_BYTES.observe(image.num_bytes)
    metrics.IMAGE_PIXELS.observe(pixels)
    metrics.IMAGE_SERVED_PIXELS.observe(image.served_width * image.served_height)
    if not log.isEnabledFor(logging.DEBUG):
        return
    log.debug(
        "picture %s %s, %d bytes, %d x %d pixels served as %d x %d, %s: fetch %.4f s, decode %.4f s, resize %.4f s",
        image.digest, image.media_type, image.num_bytes, image.width, image.height, image.served_width,
        image.served_height, cache, resolved.fetch_s, resolved.decode_s, resolved.resize_s,
    )  # fmt: skip
