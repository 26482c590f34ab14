"""Pictures within the limits that providers publish."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image as PILImage

from sightline.engines.provider_pictures import LIMITS, Limits, fitting, limits_of, to_data_uris
from sightline.errors import BodyTooLarge, ImageFileTooLarge
from sightline.types import Image, Pixels


def noise(side: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)


def opened(uri: str) -> PILImage.Image:
    head, _, data = uri.partition(";base64,")
    picture = PILImage.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert picture.get_format_mimetype() == head.removeprefix("data:")  # type: ignore[attr-defined]
    return picture


def test_a_picture_that_fits_loses_nothing() -> None:
    pixels = noise(50)
    assert np.array_equal(np.asarray(opened(fitting(pixels, 100_000))), pixels)


def test_a_larger_one_becomes_a_jpeg_of_the_same_size() -> None:
    pixels = noise(200)
    whole = len(fitting(pixels, 10**9))
    uri = fitting(pixels, whole - 1)
    assert len(uri) < whole
    picture = opened(uri)
    assert (picture.format, picture.size) == ("JPEG", (200, 200))
    assert np.abs(np.asarray(picture).astype(int) - pixels).mean() < 8


def test_what_cannot_be_made_to_fit_is_refused() -> None:
    with pytest.raises(ImageFileTooLarge, match=r"0\.01 MB"):
        fitting(noise(200), 10_000)


@pytest.mark.anyio
async def test_pictures_come_in_order_and_are_counted_together() -> None:
    images = [Image(np.full((8, 8, 3), i, np.uint8), f"sha256:{i}", 8, 8, "image/png", 9) for i in range(5)]
    uris = await to_data_uris(images, limits_of("openai"))
    assert [opened(uri).getpixel((0, 0)) for uri in uris] == [(i, i, i) for i in range(5)]
    with pytest.raises(BodyTooLarge, match="fewer or smaller"):
        await to_data_uris(images, Limits(10_000, sum(map(len, uris)) - 1))


def test_an_unknown_provider_has_the_narrowest_limits() -> None:
    unknown = limits_of("somebody")
    assert unknown.picture == min(limits.picture for limits in LIMITS.values())
    assert unknown.request <= 20_000_000
