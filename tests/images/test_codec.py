"""Files to pixels: the model sees what a person sees, and hostile files get an error of ours."""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sightline.config import ImageLimits
from sightline.errors import (
    ImageEmpty,
    ImageError,
    ImageFormatUnsupported,
    ImageTooLarge,
    ImageTooSmall,
    ImageUnreadable,
)
from sightline.images import codec
from sightline.images.budget import CellBudget
from tests.images.gallery import LIES, Form, chunk, exif, forms, png, psnr_db
from tests.images.make_reference import CASES
from tests.images.samples import AS_IT_IS, LIMITS, decoded, encode, noise, waves

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # the decoder processes ignore them too

FORMATS = {"PNG": "image/png", "WEBP": "image/webp", "BMP": "image/bmp", "GIF": "image/gif", "JPEG": "image/jpeg"}
ORIENTATION = 0x0112


# --- what a person sees ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format", "media_type"), FORMATS.items())
def test_formats(format: str, media_type: str) -> None:
    pixels = (waves(50, 40) // 64) * 64  # 4 levels a channel: a GIF holds them all
    image = Image.fromarray(pixels)
    if format == "GIF":
        image = image.quantize(256, dither=Image.Dither.NONE)
    file = encode(image, format, **({"quality": 100, "subsampling": 0} if format == "JPEG" else {}))
    picture, seen = decoded(file)
    assert (picture.media_type, picture.width, picture.height) == (media_type, 50, 40)
    assert np.abs(seen.astype(int) - pixels).mean() <= (3 if format == "JPEG" else 0)


@pytest.mark.parametrize("orientation", LIES)
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_all_orientations_are_the_same_picture(format: str, orientation: int) -> None:
    upright = waves(60, 40)
    lying = np.ascontiguousarray(LIES[orientation](upright))
    picture, seen = decoded(encode(lying, format, exif=exif(orientation)))
    assert (picture.width, picture.height) == (60, 40)
    assert np.array_equal(seen, upright)


@pytest.mark.parametrize("orientation", LIES)
def test_all_orientations_of_a_jpeg(orientation: int) -> None:
    """JPEG is lossy, so the reference is the same file without its EXIF, turned with numpy."""
    upright = waves(64, 48)
    lying = np.ascontiguousarray(LIES[orientation](upright))
    _, as_it_lies = decoded(encode(lying, "JPEG", quality=95))
    picture, seen = decoded(encode(lying, "JPEG", quality=95, exif=exif(orientation)))
    assert (picture.width, picture.height) == (64, 48)
    assert np.array_equal(LIES[orientation](seen), as_it_lies)


def test_the_budget_is_about_the_upright_picture() -> None:
    budget = CellBudget(28, 784, 8 * 784)
    picture, seen = decoded(encode(waves(400, 100), "JPEG", exif=exif(6)), budget)
    assert (picture.width, picture.height) == (100, 400)
    assert (picture.served_width, picture.served_height) == budget.serve(100, 400)[:2]
    assert seen.shape[0] > seen.shape[1]


def test_exif_behind_the_pixels_of_a_png() -> None:
    upright = waves(30, 20)
    lying = np.ascontiguousarray(LIES[6](upright))
    behind = chunk(b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0"))
    picture, seen = decoded(png(20, 30, 8, 2, [row.tobytes() for row in lying], after=behind))
    assert (picture.width, picture.height) == (30, 20)
    assert np.array_equal(seen, upright)


@pytest.mark.parametrize(
    "block", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"", b"Exif\0\0" + b"\xff" * 60_000]
)
def test_a_broken_exif_is_no_orientation(block: bytes) -> None:
    pixels = waves(30, 20)
    assert np.array_equal(decoded(encode(pixels, "PNG", exif=block))[1], pixels)


def test_an_exif_block_that_points_at_itself() -> None:
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<HHIHH", ORIENTATION, 3, 1, 3, 0)
    loop = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entry + struct.pack("<I", 8)
    pixels = waves(30, 20)
    assert np.array_equal(decoded(encode(pixels, "PNG", exif=loop))[1], pixels[::-1, ::-1])


def over(colour: npt.NDArray[Any], alpha: npt.NDArray[Any], background: tuple[int, int, int]) -> npt.NDArray[Any]:
    """Straight alpha over an opaque background, in real numbers: [h, w, 3] of 0..255, with alpha [h, w] of 0..1."""
    return colour * alpha[..., None] + np.array(background, float) * (1 - alpha[..., None])


def gradient(levels: int) -> npt.NDArray[np.int64]:
    return np.arange(24 * 16).reshape(16, 24) * 37 % levels


def alpha_cases() -> Iterator[tuple[str, bytes, npt.NDArray[Any], npt.NDArray[Any]]]:
    """Name, file, colour [16, 24, 3] of 0..255 and alpha [16, 24] of 0..1, from the specification of PNG."""
    rgb, grey, alpha = waves(24, 16), waves(24, 16, seed=3)[..., 0], noise(24, 16, channels=1, seed=1)
    grey3 = np.repeat(grey[..., None], 3, axis=-1)
    full = np.ones((16, 24))
    rgba = np.dstack([rgb, alpha])
    yield "rgba png", encode(rgba, "PNG"), rgb, alpha / 255
    yield "rgba webp", encode(rgba, "WEBP"), rgb, alpha / 255
    la = np.dstack([grey, alpha])
    yield "la", encode(Image.fromarray(la, "LA"), "PNG"), grey3, alpha / 255

    palette = noise(16, 1, seed=2)[0]
    index = gradient(16)
    indexed = Image.fromarray(index.astype(np.uint8), "P")
    indexed.putpalette(palette.tobytes())
    yield "p trns one", encode(indexed, "PNG", transparency=5), palette[index], (index != 5) * 1.0
    table = bytes(range(0, 256, 16))
    yield "p trns all", encode(indexed, "PNG", transparency=table), palette[index], index * 16 / 255
    yield "p gif", encode(indexed, "GIF", transparency=7), palette[index], (index != 7) * 1.0

    few = (rgb // 128) * 255
    hidden = tuple(int(v) for v in few[8, 12])
    yield "rgb trns", encode(few, "PNG", transparency=hidden), few, (few != hidden).any(axis=-1) * 1.0
    coarse = (grey // 64) * 64
    coarse3 = np.repeat(coarse[..., None], 3, axis=-1)
    yield "l trns", encode(coarse, "PNG", transparency=64), coarse3, (coarse != 64) * 1.0

    for depth in (1, 2, 4):
        values = gradient(2**depth)
        bits = [np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, -depth:].ravel() for row in values]
        rows = [np.packbits(row).tobytes() for row in bits]
        colour = np.repeat((values * 255 / (2**depth - 1))[..., None], 3, axis=-1)
        yield f"grey {depth}-bit", png(24, 16, depth, 0, rows), colour, full
        hide = chunk(b"tRNS", struct.pack(">H", 1))
        yield f"grey {depth}-bit trns", png(24, 16, depth, 0, rows, hide), colour, (values != 1) * 1.0

    wide = gradient(65536) * 173 % 65536
    wide[3:6] = 51_400
    rows = [row.astype(">u2").tobytes() for row in wide]
    wide3 = np.repeat((wide / 257)[..., None], 3, axis=-1)
    yield "grey 16-bit", png(24, 16, 16, 0, rows), wide3, full
    hide = chunk(b"tRNS", struct.pack(">H", 51_400))
    yield "grey 16-bit trns", png(24, 16, 16, 0, rows, hide), wide3, (wide != 51_400) * 1.0
    deep = np.stack([wide, wide[::-1], wide[:, ::-1]], axis=-1)
    rows = [row.astype(">u2").tobytes() for row in deep]
    yield "rgb 16-bit", png(24, 16, 16, 2, rows), deep / 257, full
    hide = chunk(b"tRNS", struct.pack(">HHH", *deep[2, 3]))
    yield "rgb 16-bit trns", png(24, 16, 16, 2, rows, hide), deep / 257, (deep != deep[2, 3]).any(axis=-1) * 1.0
    deep_alpha = np.dstack([deep, wide.T.reshape(16, 24)])
    rows = [row.astype(">u2").tobytes() for row in deep_alpha]
    yield "rgba 16-bit", png(24, 16, 16, 6, rows), deep / 257, deep_alpha[..., 3] / 65535
    rows = [row.astype(">u2").tobytes() for row in np.dstack([wide, deep_alpha[..., 3]])]
    yield "la 16-bit", png(24, 16, 16, 4, rows), wide3, deep_alpha[..., 3] / 65535


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 90)])
@pytest.mark.parametrize("case", list(alpha_cases()), ids=lambda case: case[0])
def test_alpha_and_depth(
    case: tuple[str, bytes, npt.NDArray[Any], npt.NDArray[Any]], background: tuple[int, int, int]
) -> None:
    """Close to real arithmetic: colour, alpha and blend are rounded, and of 16-bit alpha Pillow drops the low byte."""
    name, file, colour, alpha = case
    _, seen = decoded(file, limits=ImageLimits(background=background))
    assert np.abs(seen - over(colour, alpha, background)).max() <= (2.5 if name.endswith("a 16-bit") else 1.5)


def test_cmyk() -> None:
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[:8, :, 0] = 255  # cyan above, nothing below
    _, seen = decoded(encode(Image.fromarray(ink, "CMYK"), "JPEG", quality=95))
    assert np.abs(seen[3, 3].astype(int) - (0, 255, 255)).max() < 6
    assert np.abs(seen[12, 3].astype(int) - (255, 255, 255)).max() < 6


def test_a_phone_s_multi_picture_jpeg_is_its_first_picture() -> None:
    first, second = Image.new("RGB", (64, 48), (200, 30, 30)), Image.new("RGB", (64, 48), (30, 30, 200))
    file = encode(first, "MPO", save_all=True, append_images=[second])
    with Image.open(io.BytesIO(file)) as opened:
        assert opened.format == "MPO"
        assert getattr(opened, "n_frames", 1) == 2
    picture, seen = decoded(file)
    assert picture.media_type == "image/jpeg"
    assert np.abs(seen.astype(int) - (200, 30, 30)).max() <= 3


def test_a_gif_of_one_frame_smaller_than_its_canvas_is_laid_on_the_background() -> None:
    frame = Image.new("P", (4, 4), 1)
    frame.putpalette([0, 0, 0, 200, 0, 0])
    frame.putpixel((3, 3), 0)
    file = bytearray(encode(frame, "GIF", transparency=0))
    struct.pack_into("<HH", file, 6, 8, 8)
    _, seen = decoded(bytes(file))
    assert seen.shape == (8, 8, 3)
    assert seen[1, 1].tolist() == [200, 0, 0]
    assert seen[6, 6].tolist() == [255, 255, 255]


# --- scaling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_those_of_the_reference_processor(name: str) -> None:
    """pixels.npz was written by make_reference.py. At most 1 level of 255 apart on 99.9 % of values."""
    image, budget = CASES[name]
    with np.load(Path(__file__).parent / "pixels.npz") as reference:
        expected = reference[name]
    _, seen = decoded(encode(image, "PNG"), CellBudget(*budget))
    assert seen.shape == expected.shape
    apart = np.abs(seen.astype(int) - expected)
    assert (apart > 1).mean() <= 0.001


@pytest.mark.parametrize("progressive", [False, True])
def test_scaled_decode_is_close_to_full_decode(monkeypatch: pytest.MonkeyPatch, progressive: bool) -> None:
    file = encode(waves(2400, 1800, seed=1), "JPEG", quality=92, progressive=progressive)
    budget = CellBudget(28, 784, 256 * 784)
    monkeypatch.setattr(codec, "_FULL_DECODE_PIXELS", 2400 * 1800)
    _, full = decoded(file, budget)
    monkeypatch.undo()
    picture, scaled = decoded(file, budget)
    assert (picture.width, picture.height) == (2400, 1800)
    assert scaled.shape == full.shape
    assert not np.array_equal(scaled, full)
    assert psnr_db(scaled, full) >= 38


def test_a_jpeg_is_never_scaled_below_one_and_a_half_times_what_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    drafted: list[tuple[int, int]] = []
    monkeypatch.setattr(codec.JpegImageFile, "draft", lambda self, mode, size: drafted.append(size))
    file = encode(np.zeros((2400, 3200, 3), np.uint8), "JPEG")
    for (width, height), expected in [
        ((100, 75), (400, 300)),
        ((264, 198), (400, 300)),
        ((272, 204), (800, 600)),
        ((532, 399), (800, 600)),
        ((536, 402), (1600, 1200)),
        ((1064, 798), (1600, 1200)),
        ((1072, 804), None),
    ]:
        drafted.clear()
        decoded(file, CellBudget(1, 1, width * height))
        assert (drafted[0] if drafted else None) == expected, width


def test_a_small_jpeg_is_decoded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec.JpegImageFile, "draft", None)
    decoded(encode(waves(2000, 2000), "JPEG"), CellBudget(28, 784, 784))


# --- what it may cost ------------------------------------------------------------------------------------------------


def test_a_photograph_of_48_megapixels_works_and_a_lossless_bomb_does_not() -> None:
    phone = Image.new("RGB", (8064, 6048), (90, 120, 40))
    file = encode(phone, "JPEG", exif=exif(6))
    picture, seen = decoded(file, CellBudget(28, 3136, 1280 * 784))
    assert (picture.width, picture.height) == (6048, 8064)
    assert np.abs(seen.astype(int) - (90, 120, 40)).max() <= 2
    large = CellBudget(28, 3136, 16384 * 784)  # wants 12.8 megapixels, so only the pixel limit asks for 1/2
    assert decoded(file, large)[0].width == 6048
    for format in ("PNG", "WEBP"):
        with pytest.raises(ImageTooLarge, match=r"8000 x 8000 = 64\.0 megapixels"):
            decoded(encode(Image.new("1" if format == "PNG" else "RGB", (8000, 8000)), format))


@pytest.mark.parametrize("megapixels", [1, 16, 36, 100])
def test_photographs_of_up_to_a_hundred_megapixels(megapixels: int) -> None:
    """Left half red, right half blue, whatever the scale of the decode."""
    side = 1000 * math.isqrt(megapixels)
    photograph = Image.new("RGB", (side, side), (200, 40, 40))
    photograph.paste((40, 40, 200), (side // 2, 0, side, side))
    picture, seen = decoded(encode(photograph, "JPEG"), CellBudget(28, 3136, 256 * 784))
    assert (picture.width, picture.height) == (side, side)
    middle = picture.served_width // 2
    assert middle >= 200
    assert np.abs(seen[:, : middle - 10].astype(int) - (200, 40, 40)).max() <= 4
    assert np.abs(seen[:, middle + 10 :].astype(int) - (40, 40, 200)).max() <= 4


def test_what_is_over_a_hundred_megapixels_is_told_so() -> None:
    with pytest.raises(ImageTooLarge, match="over 16384"):
        decoded(encode(Image.new("L", (16385, 8000)), "JPEG"))


BOMB = (
    b"RIFF\x1a\0\0\0WEBPVP8L\r\0\0\0\x2f" + (7999 | 7999 << 14).to_bytes(4, "little") + b"\x07\xd0\xff\x03" + bytes(5)
)
"""The head of a lossless WebP that claims 8000 x 8000 pixels, in 34 bytes."""


def claims_png(width: int, height: int) -> bytes:
    return png(width, height, 8, 2, [b"\0" * 30])


@pytest.mark.parametrize(
    ("file", "error", "match"),
    [
        (b"", ImageEmpty, "0 bytes"),
        (BOMB, ImageTooLarge, "8000 x 8000"),
        (claims_png(4097, 4096), ImageTooLarge, "16.8 megapixels"),
        (claims_png(16385, 100), ImageTooLarge, "over 16384"),
        (claims_png(60000, 60000), ImageTooLarge, "over 16384"),
        (claims_png(1, 100), ImageTooSmall, "1 x 100"),
        (claims_png(100, 1), ImageTooSmall, "100 x 1"),
        (claims_png(402, 2), ImageTooSmall, "200 times"),
        (encode(Image.new("RGB", (8192, 6200)), "JPEG", progressive=True), ImageTooLarge, "progressive"),
        (encode(Image.new("RGB", (16385, 90)), "JPEG"), ImageTooLarge, "over 16384"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", ImageFormatUnsupported, "SVG"),
        (b"<?xml version='1.0'?>\n<svg/>", ImageFormatUnsupported, "SVG"),
        (b"<html><body>404</body></html>", ImageFormatUnsupported, "not a picture"),
        (b"%PDF-1.7\n", ImageFormatUnsupported, "PDF"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", ImageUnreadable, "truncated or corrupt"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", ImageUnreadable, "truncated or corrupt"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", ImageFormatUnsupported, "'qt  '"),
        (encode(Image.new("RGB", (9, 9)), "PPM"), ImageFormatUnsupported, "not a picture"),
        (b"PK\x03\x04" + bytes(60), ImageFormatUnsupported, "not a picture"),
        (b"\x89PNG\r\n\x1a\n", ImageUnreadable, "truncated or corrupt"),
        (b"GIF89a", ImageUnreadable, "truncated or corrupt"),
        (b"BM", ImageUnreadable, "truncated or corrupt"),
    ],
)  # fmt: skip
def test_refusals(file: bytes, error: type[ImageError], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        decoded(file, CellBudget(28, 3136, 784 * 1280))
    assert re.search(r"(Send|Make|Crop|Check)[^.]*\.$", caught.value.message), "says what to do"


def test_limits_hold_exactly() -> None:
    limits = ImageLimits(max_pixels=3000, max_side=100)
    assert decoded(encode(noise(100, 30), "PNG"), limits=limits)[0].width == 100
    with pytest.raises(ImageTooLarge):
        decoded(encode(noise(100, 31), "PNG"), limits=limits)
    with pytest.raises(ImageTooLarge):
        decoded(encode(noise(101, 3), "PNG"), limits=limits)
    assert decoded(encode(noise(2, 2), "PNG"))[0].width == 2


@pytest.mark.parametrize("name", [b"iCCP", b"zTXt"])
def test_metadata_bombs(name: bytes) -> None:
    squeezed = zlib.compress(bytes(64 * 1024 * 1024), 9)
    bomb = png(9, 9, 8, 2, [bytes(27)] * 9, chunk(name, b"x\0\0" + squeezed))
    with pytest.raises(ImageUnreadable):
        decoded(bomb)


def test_bytes_after_the_picture_are_nobody_s_business() -> None:
    pixels = waves(30, 20)
    assert np.array_equal(decoded(encode(pixels, "PNG") + b"PK\x03\x04<script>")[1], pixels)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_animated(format: str) -> None:
    frames = [Image.fromarray(waves(20, 20, seed=seed)) for seed in range(2)]
    still, animated = encode(frames[0], format), encode(frames[0], format, save_all=True, append_images=frames[1:])
    decoded(still)
    with pytest.raises(ImageFormatUnsupported, match="animated"):
        decoded(animated)


class Watched(io.BytesIO):
    furthest = 0
    amount = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.amount += len(data)
        self.furthest = max(self.furthest, self.tell())
        return data


def test_an_animation_is_known_at_its_second_frame() -> None:
    frames = [Image.new("P", (400, 400), i % 7) for i in range(200)]
    for i, frame in enumerate(frames):
        frame.putpixel((i % 400, 3), 9)
    file = Watched(encode(frames[0], "GIF", save_all=True, append_images=frames[1:], optimize=False))
    with pytest.raises(ImageFormatUnsupported):
        codec.decode(file, AS_IT_IS, LIMITS)
    assert 0 < file.furthest < len(file.getvalue()) / 10


# --- the header alone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", list(forms()), ids=lambda form: form.name)
def test_inspect_tells_what_decode_will(form: Form) -> None:
    picture, _ = decoded(form.file)
    assert codec.inspect(io.BytesIO(form.file), LIMITS) == codec.Inspected(
        picture.media_type, picture.width, picture.height
    )


def test_inspect_reads_the_header_and_skips_the_pixels() -> None:
    lying = noise(400, 300)
    behind = chunk(b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0"))
    file = png(400, 300, 8, 2, [row.tobytes() for row in lying], after=behind)
    for content, size in ((file, (300, 400)), (encode(noise(2000, 1000), "JPEG"), (2000, 1000))):
        watched = Watched(content)
        inspected = codec.inspect(watched, LIMITS)
        assert (inspected.width, inspected.height) == size
        assert watched.amount < 80_000 < len(content)


def test_inspect_refuses_what_the_header_shows() -> None:
    for file, error in ((b"", ImageEmpty), (BOMB, ImageTooLarge), (claims_png(1, 9), ImageTooSmall)):
        with pytest.raises(error):
            codec.inspect(io.BytesIO(file), LIMITS)
    assert codec.inspect(io.BytesIO(encode(Image.new("RGB", (8064, 6048)), "JPEG")), LIMITS).width == 8064
