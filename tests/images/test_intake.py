"""From what a request names to what an engine sees."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from sightline.config import FetchPolicy, ImageLimits
from sightline.errors import (
    ImageEmpty,
    ImageEncodingInvalid,
    ImageError,
    ImageFetchFailed,
    ImageForbidden,
    ImageUnreadable,
    UnsupportedFeature,
)
from sightline.images.budget import CellBudget, VisionBudget
from sightline.images.decoder import DecoderPool
from sightline.images.fetch import Fetcher
from sightline.images.intake import Intake, ResolvedImage
from sightline.images.plan import Room
from sightline.types import Detail, ImageRef, Recompression
from tests.images.samples import AS_IT_IS, decoded, encode, noise, waves
from tests.images.web import LOOPBACK, reply, serving

pytestmark = pytest.mark.anyio

BUDGET = CellBudget(28, 3136, 64 * 784)
LARGE = encode(noise(1800, 1800), "PNG", compress_level=1)
"""Takes longer to decode than everything else here together."""


@pytest.fixture
async def intake() -> AsyncIterator[Intake]:
    intake = Intake(ImageLimits())
    await intake.start()
    try:
        yield intake
        assert not intake._under_way  # nothing is kept once requests have ended
    finally:
        await intake.close()


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The files that were given to the decoders."""
    files: list[bytes] = []
    original = DecoderPool.decode

    async def decode(self: DecoderPool, file: bytes, budget: CellBudget) -> object:
        files.append(file)
        return await original(self, file, budget)

    monkeypatch.setattr(DecoderPool, "decode", decode)
    return files


async def resolve(
    intake: Intake, refs: Sequence[ImageRef], budget: CellBudget, tenant: str = ""
) -> tuple[ResolvedImage, ...]:
    """Each at its own budget, as far as a request asks for one."""
    return await intake.resolve(refs, [budget.for_picture(ref) for ref in refs], tenant=tenant)


def ref(file: bytes, index: int = 0, *, detail: Detail = "auto") -> ImageRef:
    uri = f"data:image/jpeg;base64,{base64.b64encode(file).decode()}"
    return ImageRef(uri, f"messages[0].content[{index}].image_url.url", detail)


async def test_a_picture_is_what_its_file_says(intake: Intake) -> None:
    file = encode(waves(300, 200), "PNG")
    (resolved,) = await resolve(intake, [ref(file)], BUDGET)
    image = resolved.image
    assert (image.width, image.height, image.num_bytes) == (300, 200, len(file))
    assert image.media_type == "image/png"  # not the declared image/jpeg: the magic bytes win
    assert image.digest == f"sha256:{hashlib.sha256(file).hexdigest()}"
    assert (image.served_width, image.served_height) == BUDGET.serve(300, 200)[:2]
    assert np.array_equal(image.pixels, decoded(file, BUDGET)[1])
    assert min(resolved.fetch_s, resolved.decode_s, resolved.resize_s) > 0


async def test_order_is_kept_and_every_source_works(intake: Intake) -> None:
    pictures = [waves(60 + i, 40, seed=i) for i in range(8)]
    files = [encode(pixels, "PNG") for pixels in pictures]
    files[2] = LARGE
    refs = [ref(file, i) if i % 2 else ImageRef(file, f"image {i}") for i, file in enumerate(files)]
    resolved = await resolve(intake, refs, AS_IT_IS)
    for i, pixels in enumerate(pictures):
        if i != 2:
            assert np.array_equal(resolved[i].image.pixels, pixels)
    assert resolved[2].image.width == 1800


async def test_no_pictures(intake: Intake) -> None:
    assert await resolve(intake, [], BUDGET) == ()


async def test_detail_and_pixels_choose_the_size(intake: Intake) -> None:
    file = encode(waves(600, 400), "PNG")
    full, low, few = await resolve(
        intake, [ref(file), ref(file, detail="low"), ImageRef(file, "few", max_pixels=6 * 784)], BUDGET
    )
    tokens = [BUDGET.tokens(r.image.served_width, r.image.served_height) for r in (full, low, few)]
    assert 16 < tokens[0] <= 64
    assert 6 < tokens[1] <= 16
    assert tokens[2] <= 6
    assert full.image.digest == low.image.digest == few.image.digest


# --- once ------------------------------------------------------------------------------------------------------------


async def test_a_picture_that_stands_twice_in_a_request_is_decoded_once(intake: Intake, decodings: list[bytes]) -> None:
    file, other = encode(waves(50, 50), "PNG"), encode(waves(51, 50), "PNG")
    resolved = await resolve(intake, [ref(file, 0), ref(other, 1), ref(LARGE, 2), ref(file, 3)], BUDGET)
    assert sorted(map(len, decodings)) == sorted(map(len, [file, other, LARGE]))
    assert resolved[0].image.pixels is resolved[3].image.pixels


async def test_a_twin_that_comes_late_is_still_decoded_once(
    intake: Intake, decodings: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fetch takes until the first has long been decoded."""
    original, decoded_once = Fetcher.fetch, asyncio.Event()

    async def fetch(self: Fetcher, source: str | bytes, *, tenant: str = "") -> object:
        if isinstance(source, bytes):
            await decoded_once.wait()
        return await original(self, source, tenant=tenant)

    monkeypatch.setattr(Fetcher, "fetch", fetch)
    file = encode(waves(50, 50), "PNG")
    resolving = asyncio.create_task(resolve(intake, [ref(file, 0), ImageRef(file, "late")], BUDGET))
    while not any(shared.decoding.done() for shared in intake._under_way.values()):
        await asyncio.sleep(0.005)
    decoded_once.set()
    assert len(await resolving) == 2
    assert len(decodings) == 1


async def test_identical_pictures_in_flight_are_decoded_once(intake: Intake, decodings: list[bytes]) -> None:
    file = encode(waves(50, 50), "PNG")  # small enough to be fetched at once, before any decoder can answer
    results = await asyncio.gather(*(resolve(intake, [ref(file)], BUDGET) for _ in range(10)))
    assert len(decodings) == 1
    assert len({id(r.image.pixels) for (r,) in results}) == 1


async def test_time_does_not_tell_what_another_tenant_has_sent(intake: Intake) -> None:
    """Welch's test on the time that a tenant's first sending takes, of pictures that another has sent or has not."""
    sent = [ref(encode(noise(64, 48, seed=seed), "PNG", compress_level=1)) for seed in range(200)]
    unsent = [ref(encode(noise(64, 48, seed=seed), "PNG", compress_level=1)) for seed in range(200, 400)]
    for picture in sent:
        await resolve(intake, [picture], BUDGET, "a")
    first = [(picture, True) for picture in sent] + [(picture, False) for picture in unsent]
    random.Random(5).shuffle(first)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for picture, was_sent in first:
        began = time.perf_counter()
        await resolve(intake, [picture], BUDGET, "b")
        seconds[was_sent].append(time.perf_counter() - began)
    # The slowest tenth is the machine's; what a hit would save (all of the decoding) is in the rest.
    known, unknown = (np.sort(seconds[which])[:180] for which in (True, False))
    spread = math.sqrt(known.var(ddof=1) / len(known) + unknown.var(ddof=1) / len(unknown))
    t = (known.mean() - unknown.mean()) / spread
    p = math.erfc(abs(t) / math.sqrt(2))
    print(f"known {known.mean() * 1000:.3f} ms, unknown {unknown.mean() * 1000:.3f} ms, p = {p:.3f}")
    assert p > 1e-4 or known.mean() > unknown.mean() * 0.9, "a hit would be several times as fast"


async def test_the_same_file_is_decoded_again_for_another_tenant(intake: Intake, decodings: list[bytes]) -> None:
    file = encode(waves(50, 50), "PNG")
    (ours,), (theirs,) = await asyncio.gather(*(resolve(intake, [ref(file)], BUDGET, tenant) for tenant in ("a", "b")))
    assert len(decodings) == 2  # in flight
    (again,) = await resolve(intake, [ref(file)], BUDGET, "a")
    (other,) = await resolve(intake, [ref(file)], BUDGET, "c")
    assert len(decodings) == 3  # and kept
    assert again.image.pixels is ours.image.pixels
    assert other.image.pixels is not ours.image.pixels
    assert theirs.image.pixels is not ours.image.pixels


async def test_a_picture_is_kept_for_the_next_request(intake: Intake, decodings: list[bytes]) -> None:
    file = encode(waves(600, 400), "PNG")
    (first,) = await resolve(intake, [ref(file)], BUDGET)
    (second,) = await resolve(intake, [ImageRef(file, "b")], BUDGET)
    (low,) = await resolve(intake, [ref(file, detail="low")], BUDGET)
    assert len(decodings) == 2
    assert second.image.pixels is first.image.pixels
    assert not second.image.pixels.flags.writeable  # shared, so nobody may write
    assert (second.decode_s, second.resize_s) == (0, 0)
    assert (second.image.width, second.image.media_type) == (600, "image/png")
    assert low.image.served_width < first.image.served_width


async def test_a_cache_of_no_bytes_keeps_nothing(decodings: list[bytes]) -> None:
    intake = Intake(ImageLimits(cache_bytes=0))
    await intake.start()
    for _ in range(2):
        await resolve(intake, [ref(encode(waves(50, 50), "PNG"))], BUDGET)
    await intake.close()
    assert len(decodings) == 2


async def test_a_bad_picture_is_not_kept(intake: Intake, decodings: list[bytes]) -> None:
    for _ in range(2):
        with pytest.raises(ImageUnreadable):
            await resolve(intake, [ref(encode(waves(500, 500), "PNG")[:-500])], BUDGET)
    assert len(decodings) == 2


async def test_sizes_are_known_before_anything_is_decoded(intake: Intake, decodings: list[bytes]) -> None:
    seen: list[object] = []

    class Told(Room):
        def fit(self, sizes: Sequence[tuple[int, int]], budgets: Sequence[VisionBudget]) -> tuple[VisionBudget, ...]:
            assert not decodings
            seen.extend(sizes)
            return budgets[0], BUDGET.narrowed("low")

    refs = [ref(encode(waves(60, 40), "PNG"), 0), ref(encode(waves(600, 400), "JPEG"), 1)]
    first, second = await intake.resolve(refs, [BUDGET, BUDGET], room=Told(0, 0, None))
    assert seen == [(60, 40), (600, 400)]
    assert not first.scaled_to_fit
    assert second.scaled_to_fit
    assert BUDGET.tokens(second.image.served_width, second.image.served_height) <= 16


async def test_where_room_is_short_a_bad_picture_is_still_the_first_in_order_and_named(
    intake: Intake, decodings: list[bytes]
) -> None:
    refs = [ref(encode(waves(60, 40), "PNG"), 0), ref(b"GIF", 1), ref(b"no", 2)]
    with pytest.raises(ImageError) as caught:
        await intake.resolve(refs, [BUDGET] * 3, room=Room(8192, 0, None))
    assert caught.value.param == refs[1].param
    assert not decodings


async def test_a_picture_is_made_a_jpeg_first_where_that_is_wanted(intake: Intake) -> None:
    file = encode(noise(400, 200), "PNG")
    small = replace(ref(file), recompression=Recompression(100, 50))
    whole, jpeg = await resolve(intake, [ref(file), small], AS_IT_IS)
    assert (jpeg.image.width, jpeg.image.height, jpeg.image.media_type) == (100, 50, "image/jpeg")
    assert jpeg.image.num_bytes < whole.image.num_bytes
    assert jpeg.image.digest != whole.image.digest
    with pytest.raises(ImageUnreadable, match=r"^messages\[0\]"):
        await resolve(intake, [replace(ref(file[:-500]), recompression=Recompression(100, 50))], AS_IT_IS)


async def test_other_budgets_are_other_pixels(intake: Intake, decodings: list[bytes]) -> None:
    file = encode(waves(600, 400), "PNG")
    await asyncio.gather(resolve(intake, [ref(file)], BUDGET), resolve(intake, [ref(file)], AS_IT_IS))
    assert len(decodings) == 2


async def test_same_shape_other_bytes_is_another_picture(intake: Intake) -> None:
    """The twins that caches have confused: 30 x 100 and 100 x 30 of the same bytes, and palettes."""
    pixels = noise(100, 30)
    wide, tall = encode(pixels, "BMP"), encode(pixels.reshape(100, 30, 3), "BMP")
    a, b = await resolve(intake, [ref(wide), ref(tall)], AS_IT_IS)
    assert (a.image.width, b.image.width) == (100, 30)
    assert a.image.digest != b.image.digest


async def test_when_one_of_two_requests_leaves_the_other_still_gets_the_picture(
    intake: Intake, decodings: list[bytes]
) -> None:
    file = encode(waves(50, 50), "PNG")
    leaving = asyncio.create_task(resolve(intake, [ref(file)], BUDGET))
    staying = asyncio.create_task(resolve(intake, [ref(file)], BUDGET))
    while [shared.holders for shared in intake._under_way.values()] != [2]:
        await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert (await staying)[0].image.width == 50
    assert len(decodings) == 1


async def test_a_cancelled_request_leaves_nothing_behind(intake: Intake, decodings: list[bytes]) -> None:
    files = [encode(noise(700, 700, seed=seed), "PNG", compress_level=1) for seed in range(6)]
    resolving = asyncio.create_task(resolve(intake, [ref(file, i) for i, file in enumerate(files)], BUDGET))
    while not decodings:
        await asyncio.sleep(0.001)
    resolving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await resolving
    assert not intake._under_way
    assert (await resolve(intake, [ref(encode(waves(50, 50), "PNG"))], BUDGET))[0].image.width == 50


# --- the first bad picture -------------------------------------------------------------------------------------------


async def test_the_first_bad_picture_in_order_is_the_one_that_is_told(intake: Intake) -> None:
    """Whichever fails first in time: a truncated large file is known long after a forbidden URL."""
    good = encode(waves(50, 50), "PNG")
    bad = [
        (ref(LARGE[:-1000]).source, ImageUnreadable),
        ("http://127.0.0.1/a.png", ImageForbidden),
        (b"", ImageEmpty),
        ("data:;base64,A", ImageEncodingInvalid),
    ]
    for _ in range(len(bad)):
        refs = [ref(good, 0)]
        refs += [ImageRef(source, f"messages[0].content[{i}].image_url.url") for i, (source, _) in enumerate(bad, 1)]
        error = bad[0][1]
        with pytest.raises(error) as caught:
            await resolve(intake, refs, BUDGET)
        assert caught.value.param == "messages[0].content[1].image_url.url"
        assert caught.value.message.startswith("messages[0].content[1].image_url.url: ")
        bad.append(bad.pop(0))


async def test_the_same_bad_picture_is_named_by_its_own_place_in_each_request(intake: Intake) -> None:
    bad = LARGE[:-1000]

    async def param(index: int) -> str | None:
        with pytest.raises(ImageError) as caught:
            await resolve(intake, [ref(bad, index)], BUDGET)
        return caught.value.param

    params = await asyncio.gather(*(param(i) for i in range(3)))
    assert params == [f"messages[0].content[{i}].image_url.url" for i in range(3)]


async def test_too_many_pictures_are_refused_before_any_is_read(intake: Intake, decodings: list[bytes]) -> None:
    refs = [ref(b"not even a picture", i) for i in range(65)]
    with pytest.raises(UnsupportedFeature, match="at most 64 pictures; this one has 65") as caught:
        await resolve(intake, refs, BUDGET)
    assert caught.value.param == refs[64].param
    assert not decodings


# --- by URL ----------------------------------------------------------------------------------------------------------


async def test_a_picture_by_url_is_the_picture() -> None:
    file = encode(waves(50, 40), "PNG")
    async with serving(reply(file)) as site:
        intake = Intake(ImageLimits(), FetchPolicy(allow_hosts=(f"127.0.0.1:{site.port}",), allow_networks=LOOPBACK))
        await intake.start()
        url = f"http://127.0.0.1:{site.port}/a.jpg"
        by_url, inline = await resolve(intake, [ImageRef(url, "a"), ImageRef(file, "b")], BUDGET)
        await intake.close()
    assert by_url.image.pixels is inline.image.pixels  # one file, one decoding
    assert by_url.image.media_type == "image/png"


async def test_a_picture_by_url_that_fails_is_named_by_its_place() -> None:
    async with serving(reply(b"", status="404 Not Found")) as site:
        intake = Intake(ImageLimits(), FetchPolicy(allow_hosts=(f"127.0.0.1:{site.port}",), allow_networks=LOOPBACK))
        with pytest.raises(ImageFetchFailed, match=r"^messages\[0\]: this picture .* status 404") as caught:
            await resolve(intake, [ImageRef(f"http://127.0.0.1:{site.port}/", "messages[0]")], BUDGET)
    assert caught.value.param == "messages[0]"
