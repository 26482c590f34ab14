"""What is refused of the formats that are taken, by name; and files that say one thing twice."""

from __future__ import annotations

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sightline.config import ImageLimits
from sightline.errors import ImageError, ImageFormatUnsupported, ImageTooLarge, ImageUnreadable
from sightline.images import codec, colour
from tests.images.gallery import DISPLAY_P3, exif, heic, profile, psnr_db, scene, stored_in, tiff
from tests.images.samples import LIMITS, decoded, encode, waves

JPEG = encode(waves(60, 40), "JPEG")


def jpeg(*, frame: int = 0xC0, bits: int = 8, channels: int = 3) -> bytes:
    """A JPEG whose frame claims to be of another kind."""
    at = JPEG.index(b"\xff\xc0")
    file = bytearray(JPEG)
    file[at + 1], file[at + 4], file[at + 9] = frame, bits, channels
    return bytes(file)


TIFF = tiff(waves(60, 40), 2)


def tiff_with(tag: int, value: int) -> bytes:
    at = TIFF.index(struct.pack("<HHI", tag, 4, 1)) + 8
    return TIFF[:at] + struct.pack("<I", value) + TIFF[at + 4 :]


def pages(format: str, **options: object) -> bytes:
    first, second = (Image.fromarray(waves(60, 40, seed=seed)) for seed in (1, 2))
    return encode(first, format, save_all=True, append_images=[second], **options)


@pytest.mark.parametrize(
    ("file", "match"),
    [
        (jpeg(bits=12), "12-bit JPEG"),
        (jpeg(frame=0xC1, bits=12), "12-bit JPEG"),
        (jpeg(frame=0xC3), "lossless JPEG"),
        (jpeg(frame=0xC5), "hierarchical JPEG"),
        (jpeg(frame=0xC9), "arithmetic-coded JPEG"),
        (jpeg(frame=0xCA), "arithmetic-coded JPEG"),
        (jpeg(channels=2), "2-channel JPEG"),
        (pages("PNG"), "animated"),
        (pages("GIF"), "animated"),
        (pages("WEBP"), "animated"),
        (pages("AVIF"), "animated"),
        (pages("TIFF"), "more than one page"),
        (b"\0\0\0\x18ftyphevc\0\0\0\0hevcmif1", "animated"),
        (tiff_with(259, 50000), "number 50000"),
        (tiff_with(259, 34712), "keeps its pixels in a way"),
        (tiff_with(262, 9), "keeps its pixels in a way"),
        (encode(Image.new("F", (9, 9)), "TIFF"), "fractional"),
        (encode(Image.new("I", (9, 9)), "TIFF"), "32-bit"),
        (encode(Image.new("LAB", (9, 9)), "TIFF"), "LAB colours"),
    ],
)  # fmt: skip
def test_refused_by_name(file: bytes, match: str) -> None:
    with pytest.raises(ImageFormatUnsupported, match=match) as caught:
        decoded(file)
    assert "Send" in caught.value.message, "says what to do"


def test_heic_without_its_decoder_says_how_to_add_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(ImageFormatUnsupported, match="pip install pi-heif"):
        decoded(heic(waves(60, 40)))


def test_of_several_pictures_in_a_heic_the_primary_one_counts() -> None:
    first, second = Image.new("RGB", (64, 48), (200, 30, 30)), Image.new("RGB", (64, 48), (30, 30, 200))
    file = encode(first, "HEIF", save_all=True, append_images=[second], primary_index=1)
    assert np.abs(decoded(file)[1].astype(int) - (30, 30, 200)).max() <= 3


def test_an_orientation_that_a_heic_carries_twice_counts_once() -> None:
    """The encoder writes `irot` and keeps the EXIF; the first is what turns the picture (ISO/IEC 23008-12, 6.5.10)."""
    file = heic(np.ascontiguousarray(np.rot90(scene())), exif=exif(6).tobytes(), quality=90, chroma=444)
    assert b"irot" in file
    assert psnr_db(decoded(file)[1], scene()) >= 35


def test_an_orientation_in_xmp_is_not_believed() -> None:
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/' tiff:Orientation='6'/>".replace(b"'", b'"')
    for format, options in (("TIFF", {"tiffinfo": {700: xmp}}), ("PNG", {}), ("JPEG", {"xmp": xmp})):
        picture, _ = decoded(encode(waves(60, 40), format, **options))
        assert (picture.width, picture.height) == (60, 40), format


@pytest.mark.parametrize("junk", [b"", b"\xff\xff\xff", b"\0\0\0"])
def test_junk_between_segments_hides_no_frame(junk: bytes) -> None:
    at = JPEG.index(b"\xff\xc0")
    file = jpeg(frame=0xC9)
    with pytest.raises(ImageFormatUnsupported, match="arithmetic"):
        decoded(file[:at] + junk + file[at:])


def test_tiles_cost_what_a_picture_may() -> None:
    with pytest.raises(ImageTooLarge, match="tiles"):
        file = bytearray(tiff(waves(64, 64), 2, tile=64))
        for tag in (322, 323):
            struct.pack_into("<I", file, file.index(struct.pack("<HHI", tag, 4, 1)) + 8, 5000)
        decoded(bytes(file))


def test_a_profile_is_applied_before_the_background_is_laid() -> None:
    """The operator's background is sRGB whatever the picture is in."""
    rgba = np.dstack([stored_in(scene(), DISPLAY_P3), np.full((168, 224), 0, np.uint8)])
    _, seen = decoded(
        encode(rgba, "PNG", icc_profile=profile(DISPLAY_P3)), limits=ImageLimits(background=(10, 200, 90))
    )
    assert (seen == (10, 200, 90)).all()


def test_a_profile_that_changes_nothing_costs_nothing() -> None:
    from tests.images.gallery import SRGB

    assert colour._transform(profile(SRGB), "RGB") is None
    assert colour._transform(profile(DISPLAY_P3), "RGB") is not None
    assert colour._transform(profile(DISPLAY_P3), "L") is None, "not about grey"


def test_other_pictures_do_not_wait_for_what_only_some_need() -> None:
    """Imports are what a new decoder process takes its time for."""
    script = "import sys, sightline.images.codec; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    for module in ("pi_heif", "PIL._imagingcms", "PIL.TiffImagePlugin", "PIL.AvifImagePlugin", "numpy"):
        assert module not in loaded


def test_sizes_from_nothing_to_a_hundred_megapixels() -> None:
    """As documented: below 2 pixels refused, then taken; a JPEG up to any size that fits at an eighth."""
    for side, error in ((1, ImageError), (2, None), (3, None), (4096, None), (4097, ImageTooLarge)):
        file = encode(Image.new("1", (side, side)), "PNG")
        if error is None:
            assert codec.inspect(io.BytesIO(file), LIMITS).width == side
        else:
            with pytest.raises(error):
                codec.inspect(io.BytesIO(file), LIMITS)
    hundred = encode(Image.new("L", (12_000, 8_400), 99), "JPEG")
    assert codec.inspect(io.BytesIO(hundred), LIMITS).width == 12_000


def test_a_file_in_too_many_parts_is_refused_before_its_parser_sees_it() -> None:
    with pytest.raises(ImageUnreadable, match="65,536 parts"):
        decoded(JPEG[:2] + b"\xff\xe9\0\2" * 70_000 + JPEG[2:])


# --- ink -------------------------------------------------------------------------------------------------------------


def press_profile(*, cyan_lightness: float) -> bytes:
    """An ICC profile of a press (ICC.1:2022, 10.10: one `lut8Type` table) on which cyan ink prints a neutral grey.

    No real press does: a picture that looks so was brought through its profile, not through the default.
    """
    steps = [(cyan, black) for cyan in (0, 1) for _ in range(4) for black in (0, 1)]  # magenta and yellow do nothing
    lightness = [(100 - (100 - cyan_lightness) * cyan) * (1 - black) for cyan, black in steps]
    colours = b"".join(bytes((round(value * 2.55), 128, 128)) for value in lightness)
    identity = b"".join(struct.pack(">i", 65536 if at % 4 == 0 else 0) for at in range(9))
    levels = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity + levels * 4 + colours + levels * 3
    table += bytes(-len(table) % 4)
    white = struct.pack(">3i", *(round(value * 65536) for value in (0.9642, 1, 0.8249)))
    head = struct.pack(">I4xI", 144 + len(table), 0x02400000) + b"prtrCMYKLab " + bytes(12) + b"acsp"
    return (
        (head.ljust(68, b"\0") + white).ljust(128, b"\0") + struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table
    )


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_ink_looks_as_its_press_profile_says(format: str) -> None:
    ink = np.zeros((32, 32, 4), np.uint8)
    ink[:16, :, 0] = 255  # cyan above
    ink[16:, :16, 3] = 255  # black below on the left, bare paper on the right
    picture = Image.fromarray(ink, "CMYK")
    options = {"quality": 95} if format == "JPEG" else {}
    _, plain = decoded(encode(picture, format, **options))
    _, printed = decoded(encode(picture, format, icc_profile=press_profile(cyan_lightness=70), **options))
    assert np.abs(plain[4, 16].astype(int) - (0, 255, 255)).max() < 6, "the default: cyan as screens show it"
    grey = 171  # L* = 70 in sRGB
    for (y, x), expected in {(4, 16): grey, (28, 4): 0, (28, 28): 255}.items():
        assert np.abs(printed[y, x].astype(int) - expected).max() <= 4, (y, x, printed[y, x])
