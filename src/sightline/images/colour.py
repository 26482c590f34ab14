"""Whatever a file keeps its colours in, to 8-bit sRGB as a person sees it: depth, transparency, CMYK, ICC profiles.

In two steps, because colours are costly to transform and few pixels are left after scaling: `flatten` decodes and lays
on the background; `to_srgb` comes last. Levels are scaled, never clipped: the darkest and the lightest stay so.
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageMath
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile

from sightline.errors import ImageFormatUnsupported
from sightline.images.headers import png_bit_depth

if TYPE_CHECKING:  # most pictures have no profile that matters: decoder processes start without it
    from PIL.ImageCms import ImageCmsTransform


class Flat(NamedTuple):
    """Opaque pixels of 8 bits a channel (L, RGB or CMYK), and the ICC profile that says what they mean, or none."""

    pixels: Image.Image
    profile: bytes


def flatten(opened: ImageFile, background: tuple[int, int, int]) -> Flat:
    """Decodes the pixels, whatever their mode, and lays what is transparent on the background, which is sRGB.

    Raises `ImageFormatUnsupported` for numbers that say no colours.
    """
    _verify_mode(opened)
    depth = png_bit_depth(opened.fp) if isinstance(opened, PngImageFile) and opened.fp else 8  # while it is open
    opened.load()
    profile = opened.info.get("icc_profile") or b""
    if opened.has_transparency_data and not _is_falsely_transparent(opened):
        rgba = _to_rgba(opened, depth)
        colours = to_srgb(Flat(rgba.convert("RGB"), profile)) if profile else rgba
        return Flat(_on_background(colours, rgba.getchannel("A"), background), b"")
    if opened.mode.startswith("I;16"):
        return Flat(_grey_16_to_8(opened), profile)
    # 16-bit RGB is RGB here: Pillow keeps the high byte of each value. Converting RGB to RGB would copy it.
    if opened.mode in ("L", "RGB", "CMYK"):
        return Flat(opened, profile)
    return Flat(opened.convert("L" if opened.mode in ("1", "La", "LA") else "RGB"), profile)


def to_srgb(flat: Flat) -> Image.Image:
    """RGB pixels as a screen shows them: by the profile where there is a sane one that matters.

    Else grey and RGB are taken as sRGB, and CMYK as browsers take it: each of R, G, B is (1 - ink) x (1 - black).
    """
    transform = _transform(flat.profile, flat.pixels.mode) if flat.profile else None
    if transform is not None:
        from PIL import ImageCms

        return ImageCms.applyTransform(flat.pixels, transform) or flat.pixels
    return flat.pixels if flat.pixels.mode == "RGB" else flat.pixels.convert("RGB")


# --- depth -----------------------------------------------------------------------------------------------------------

_PHOTOMETRIC, _BITS_PER_SAMPLE = 262, 258
"""Tags of TIFF 6.0."""


def _verify_mode(opened: ImageFile) -> None:
    if opened.mode in ("I", "F"):
        raise ImageFormatUnsupported(
            "this picture holds signed, 32-bit or fractional numbers, which say no colours. Save it with 8 or 16 bits "
            "a channel. Send that."
        )
    if opened.mode in ("LAB", "HSV"):
        raise ImageFormatUnsupported(f"this picture is in {opened.mode} colours. Save it in RGB. Send that.")


def _grey_16_to_8(grey: ImageFile) -> Image.Image:
    """round(255 x value / the highest): 65535 becomes 255. (Pillow's own conversion clips: all above 255 is white.)"""
    tags = getattr(grey, "tag_v2", {})
    highest = 4095 if tags.get(_BITS_PER_SAMPLE, (16,))[0] == 12 else 65535
    white_is_zero = tags.get(_PHOTOMETRIC) == 0  # which Pillow sees to up to 8 bits
    slope, offset = (-255 / highest, 255.5) if white_is_zero else (255 / highest, 0.5)
    return grey.convert("I").point(lambda value: value * slope + offset).convert("L")


# --- transparency ----------------------------------------------------------------------------------------------------


def _is_falsely_transparent(opened: Image.Image) -> bool:
    """A BMP whose every pixel is transparent: what wrote it did not know of alpha. Browsers show it opaque."""
    return isinstance(opened, BmpImageFile) and opened.getchannel("A").getextrema() == (0, 0)


def _to_rgba(opened: ImageFile, png_bit_depth: int) -> Image.Image:
    transparent = opened.info.get("transparency")
    if "A" in opened.getbands() or opened.mode in ("P", "La") or transparent is None:
        return opened.convert("LA").convert("RGBA") if opened.mode == "La" else opened.convert("RGBA")
    # PNG's tRNS names one transparent colour in the file's own bit depth; Pillow has scaled the pixels to 8 bits.
    if opened.mode == "I;16":
        wide = opened.convert("I")
        opaque = ImageMath.lambda_eval(lambda env: env["convert"]((env["wide"] != transparent) * 255, "L"), wide=wide)
        rgba = _grey_16_to_8(opened).convert("RGBA")
        rgba.putalpha(opaque)
        return rgba
    if opened.mode == "L" and png_bit_depth in (2, 4):
        opened.info["transparency"] = transparent * 255 // (2**png_bit_depth - 1)
    elif opened.mode == "RGB" and png_bit_depth == 16:
        # The low bytes are gone, so a colour within 1/256 of the transparent one counts as it.
        opened.info["transparency"] = tuple(value >> 8 for value in transparent)
    return opened.convert("RGBA")


def _on_background(colours: Image.Image, alpha: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if alpha.getextrema() == (255, 255):
        return colours.convert("RGB")
    canvas = Image.new("RGB", colours.size, background)
    canvas.paste(colours, mask=alpha)
    return canvas


# --- profiles --------------------------------------------------------------------------------------------------------

_MAX_PROFILE_BYTES = 1_000_000
"""Profiles of CMYK presses are the largest, at half of this; of screens and cameras, 3 KB or less."""
_COLOUR_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
"""By mode, how ICC.1:2022 (7.2.6) names what a profile is about."""
_NEGLIGIBLE = 2
"""Levels of 255. A profile that moves no colour further is sRGB by another name, and costs only time."""


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCmsTransform | None:
    """What makes sRGB of pixels in a profile; None where it is too large, broken, not about such pixels or no change.

    With the perceptual tables where a profile has any (most have one matrix, whatever the intent), as browsers do.
    """
    from PIL import ImageCms

    if len(profile) > _MAX_PROFILE_BYTES:
        return None
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if source.profile.xcolor_space.strip() != _COLOUR_SPACES[mode]:
            return None
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB", ImageCms.Intent.PERCEPTUAL)
        return transform if _matters(transform, mode) else None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None  # as browsers do: a picture with a broken profile is shown as if it had none


def _matters(transform: ImageCmsTransform, mode: str) -> bool:
    """Whether it moves any of some 700 colours that are spread evenly, or any grey, by more than is negligible."""
    from PIL import ImageChops, ImageCms

    if mode == "CMYK":
        return True
    levels = range(0, 256, 1 if mode == "L" else 31)
    if mode == "L":
        colours = Image.frombytes("L", (len(levels), 1), bytes(levels))
    else:
        triples = bytes(value for r in levels for g in levels for b in levels for value in (r, g, b))
        colours = Image.frombytes("RGB", (len(triples) // 3, 1), triples)
    seen = ImageCms.applyTransform(colours, transform)
    assert seen is not None, "it was not asked to work in place"
    apart = ImageChops.difference(seen, colours.convert("RGB")).getextrema()
    return max(int(high) for _, high in apart) > _NEGLIGIBLE  # type: ignore[misc]
