"""Damaged files: refused in our words, or the whole picture. All 10,000 mutations run by `make fuzz-images`."""

from __future__ import annotations

import asyncio
import io

import numpy as np
import pytest
from PIL import Image

from sightline.config import ImageLimits
from sightline.errors import ImageEmpty, ImageError, ImageFormatUnsupported, ImageUnreadable
from sightline.images import codec
from tests.images.damage import fuzz, mutations, prefixes, seeds
from tests.images.gallery import exif
from tests.images.samples import AS_IT_IS, LIMITS, decoded, encode, noise, waves

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # the decoder processes ignore them too


def small_files() -> dict[str, bytes]:
    rgb = waves(37, 29)
    rgba = np.dstack([rgb, noise(37, 29, channels=1)])
    return {
        "jpeg": encode(rgb, "JPEG"),
        "jpeg-progressive": encode(rgb, "JPEG", progressive=True, exif=exif(8)),
        "png": encode(rgb, "PNG"),
        "png-alpha": encode(rgba, "PNG", exif=exif(5)),
        "png-palette": encode(Image.fromarray(rgb).quantize(16), "PNG", transparency=3),
        "webp-lossless": encode(rgba, "WEBP"),
        "webp-lossy": encode(rgb, "WEBP", lossless=False, quality=70, exif=exif(3)),
        "gif": encode(Image.fromarray(rgb).quantize(32), "GIF"),
        "bmp": encode(rgb, "BMP"),
    }


SMALL = small_files()


@pytest.mark.parametrize("name", SMALL)
def test_every_prefix_is_refused_or_the_whole_picture(name: str) -> None:
    """A file may lose its last bytes (an end mark), but never a pixel in silence."""
    file = SMALL[name]
    _, whole = decoded(file)
    for length in range(len(file)):
        try:
            _, seen = decoded(file[:length])
        except (ImageUnreadable, ImageFormatUnsupported):  # the latter while the magic bytes are not all there
            continue
        except ImageEmpty:
            assert length == 0
        else:
            assert np.array_equal(seen, whole), length
            assert length > len(file) * 0.9, length


def test_a_sample_of_damage_harms_no_decoder(capsys: pytest.CaptureFixture[str]) -> None:
    """Two prefixes of each seed file and 400 mutations, through real decoder processes."""
    cut = [(name, prefix) for name, file in seeds().items() for prefix in list(prefixes(file))[20::30]]
    mutated = list(mutations(400, seed=1))
    assert asyncio.run(fuzz(cut + mutated)), capsys.readouterr().out
    told = capsys.readouterr().out
    print(told)
    assert " 2 processes for 2 places" in told
    assert float(told.partition(" places, ")[2].partition(" MiB")[0]) < 400


def test_undamaged_seeds_are_many_and_all_formats() -> None:
    formats = {decoded(file)[0].media_type for file in seeds().values()}
    assert len(formats) == 8
    assert len(seeds()) > 20


def test_errors_never_hold_the_parser_s_words() -> None:
    texts = set()
    for _, file in mutations(200, seed=7):
        try:
            decoded(file, limits=ImageLimits(max_pixels=1_000_000))
        except ImageUnreadable as error:
            texts.add((error.message, error.__cause__, error.__suppress_context__))
        except ImageError:
            continue
    assert [text[1:] for text in texts] == [(None, True)]


def test_a_file_object_is_read_from_its_start_once() -> None:
    """The codec takes any binary file, at its start, and does not close it."""
    file = io.BytesIO(encode(waves(10, 10), "PNG"))
    codec.decode(file, AS_IT_IS, LIMITS)
    assert not file.closed
