"""Bytes to pixels: identify, verify, open, orient, lay on a background, scale. Pure; runs in the decoder processes.

A picture is what a person would see: upright (EXIF), transparent parts on the background, 16 bits a channel made 8.
Files are hostile until proved otherwise: the magic bytes choose one parser, what the header claims is checked before
any pixel is decoded, no metadata but the orientation is looked at, and errors are in our words, never the parser's.
Errors do not say which picture they are about; the caller knows.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import SEEK_CUR
from typing import BinaryIO, Literal

import msgspec
from PIL import Image, ImageMath
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from sightline.config import ImageLimits
from sightline.errors import (
    ImageEmpty,
    ImageError,
    ImageFormatUnsupported,
    ImageTooLarge,
    ImageTooSmall,
    ImageUnreadable,
)
from sightline.images.budget import VisionBudget

MediaType = Literal["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp"]
"""The formats that are taken."""


class Picture(msgspec.Struct, frozen=True, tag=True):
    """What was found in a file, beside its pixels. Sizes in pixels, upright."""

    media_type: MediaType
    width: int
    height: int
    served_width: int
    served_height: int
    decode_s: float
    """Seconds from the file to upright RGB at the size it was decoded."""
    resize_s: float
    """Seconds from there to the served size."""


class Inspected(msgspec.Struct, frozen=True, tag=True):
    """What a file's header says of its picture. Sizes in pixels, upright."""

    media_type: MediaType
    width: int
    height: int


def inspect(file: BinaryIO, limits: ImageLimits) -> Inspected:
    """What the one picture in a file is, from its header alone: no pixel is decoded.

    Raises what `decode` raises, as far as the header can tell.
    """
    with _opened(file, limits) as (media_type, opened):
        inspected = Inspected(media_type, *_upright_size(opened))  # now: the next line changes the size
        _scale_while_decoding(opened, (1, 1), limits)
        _verify_pixels(*opened.size, limits)
        return inspected


def decode(file: BinaryIO, budget: VisionBudget, limits: ImageLimits) -> tuple[Picture, bytes]:
    """The one picture in a file, as RGB bytes (row by row from the top, 3 x served_width x served_height of them).

    Scaled to what `budget.serve` says of its upright size, with Pillow's antialiased filter `budget.resample`: the
    very operation of transformers' Pillow image processors.

    Raises `ImageEmpty`; `ImageFormatUnsupported` for what is no picture, in another format or animated (known at the
    second frame); `ImageTooLarge` and `ImageTooSmall` for what the header claims, before pixels are decoded;
    `ImageUnreadable` for what is truncated or corrupt.
    """
    began = time.perf_counter()
    with _opened(file, limits) as (media_type, opened):
        upright, size = _orientation(opened), _upright_size(opened)
        served = budget.serve(*size)[:2]
        _scale_while_decoding(opened, served[::-1] if upright in _SWAPS_SIDES else served, limits)
        _verify_pixels(*opened.size, limits)
        rgb = _load_rgb(opened, limits.background)
        del opened  # and with it the file's own buffers
        if upright is not None:
            rgb = rgb.transpose(upright)
        decoded = time.perf_counter()
        rgb = rgb.resize(served, _FILTERS[budget.resample])
        resized = time.perf_counter()
        picture = Picture(media_type, *size, *served, decode_s=decoded - began, resize_s=resized - decoded)
        return picture, rgb.tobytes()


@contextmanager
def _opened(file: BinaryIO, limits: ImageLimits) -> Iterator[tuple[MediaType, ImageFile]]:
    """The picture of a file, its header read and found to be one that is taken. Errors within are in our words."""
    with _errors_in_our_words():
        head = file.read(_HEAD_BYTES)
        media_type = identify(head)
        if media_type == "image/webp" and (canvas := _webp_canvas(head)):
            _verify_pixels(*canvas, limits)  # Pillow's parser allocates the canvas twice, on opening the file
        file.seek(0)
        opened = _PARSERS[media_type](file)
        if getattr(opened, "is_animated", False):  # for GIF, this looks no further than the second frame
            raise ImageFormatUnsupported("this picture is animated. Send one frame of it as a single picture.")
        _verify_sides(*opened.size, limits)
        yield media_type, opened


# --- what it is ------------------------------------------------------------------------------------------------------

_HEAD_BYTES = 64
_PNG_SIGNATURE_BYTES = 8

_PARSERS: dict[MediaType, Callable[[BinaryIO], ImageFile]] = {
    "image/jpeg": JpegImageFile,  # not Image.open, which makes a multi-picture file (MPO) of some phones' photographs
    "image/png": PngImageFile,
    "image/webp": WebPImageFile,
    "image/gif": GifImageFile,
    "image/bmp": BmpImageFile,
}
"""The only parsers that a file can reach."""

ACCEPTED = "JPEG, PNG, WebP, GIF (one frame) or BMP"

_MAGIC: tuple[tuple[re.Pattern[bytes], MediaType], ...] = (
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"BM"), "image/bmp"),
)
_MAGIC_OF_OTHERS = (
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "AVIF"),
    (re.compile(rb"....ftyp(hei[cfmsx]|hev[cmsx]|mi[af]f|msf1)", re.DOTALL), "HEIC"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "JPEG XL"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"\0\0\x01\0"), "ICO"),
    (re.compile(rb"8BPS"), "PSD"),
    (re.compile(rb"%PDF-"), "PDF"),
    (re.compile(rb"\s*(<\?xml[^>]*>\s*)?<svg", re.IGNORECASE), "SVG"),
)


def identify(head: bytes) -> MediaType:
    """The media type that a file's first bytes announce. Raises `ImageEmpty` or `ImageFormatUnsupported`."""
    if not head:
        raise ImageEmpty("this picture file is empty (0 bytes). Send the file's content.")
    for magic, media_type in _MAGIC:
        if magic.match(head):
            return media_type
    for magic, name in _MAGIC_OF_OTHERS:
        if magic.match(head):
            raise ImageFormatUnsupported(f"this is a {name} file, which is not taken here. Send {ACCEPTED}.")
    raise ImageFormatUnsupported(f"this is not a picture in a known format. Send {ACCEPTED}.")


def _webp_canvas(head: bytes) -> tuple[int, int] | None:
    """(width, height) that a WebP file's first chunk claims; None where it is malformed.

    Layouts: RFC 9649, 2.5 (VP8), 2.6 (VP8L) and 2.7 (VP8X).
    """

    def field(offset: int, length: int) -> int:
        return int.from_bytes(head[offset : offset + length], "little")

    if len(head) >= 30:
        match head[12:16]:
            case b"VP8 ":
                return field(26, 2) & 0x3FFF, field(28, 2) & 0x3FFF
            case b"VP8L":
                bits = field(21, 4)
                return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
            case b"VP8X":
                return field(24, 3) + 1, field(27, 3) + 1
    return None


# --- what it may cost ------------------------------------------------------------------------------------------------

_FULL_DECODE_PIXELS = 4_000_000
"""JPEGs up to this size are decoded whole, and so exactly as the reference does; it takes 50 ms."""
_OVERSAMPLING = 2
"""How many times the served size, on both sides, a scaled decode keeps."""
_PROGRESSIVE_FACTOR = 3
"""Times the pixel limit that a progressive JPEG may have: 50 megapixels, 300 MB of coefficients at most."""


def _verify_sides(width: int, height: int, limits: ImageLimits) -> None:
    if min(width, height) < 2:
        raise ImageTooSmall(
            f"this picture is {width} x {height} pixels; a side of less than 2 shows nothing. Send a larger one."
        )
    if max(width, height) > limits.max_side:
        raise ImageTooLarge(
            f"this picture is {width} x {height} pixels; no side may be over {limits.max_side}. "
            "Make it smaller or cut it."
        )


def _verify_pixels(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"this picture is {width} x {height} = {width * height / 1e6:.1f} megapixels to decode; this server takes "
            f"{limits.max_pixels / 1e6:.1f}. Make it smaller, or send a JPEG, which may be larger."
        )


def _scale_while_decoding(jpeg: ImageFile, served: tuple[int, int], limits: ImageLimits) -> None:
    """Has a large JPEG decoded at 1/2, 1/4 or 1/8 of its size, which saves most of the time and memory.

    Only above 4 megapixels, and to no less than twice the served size on both sides: after the bicubic step that is
    45 dB or more from decoding a photograph whole, 40 dB for white noise (PSNR, measured at 12 megapixels; a test holds
    38 dB). Only where a JPEG is over the pixel limit even then, it is scaled further until it fits: the limit is about
    cost, and a 100-megapixel photograph works.

    `served` is not upright: as the file lies. A progressive JPEG keeps every coefficient in memory at any scale, so it
    has a limit of its own.
    """
    if not isinstance(jpeg, JpegImageFile):
        return
    width, height = jpeg.size
    if "progressive" in jpeg.info and width * height > _PROGRESSIVE_FACTOR * limits.max_pixels:
        raise ImageTooLarge(
            f"this progressive JPEG is {width} x {height} = {width * height / 1e6:.1f} megapixels; this server takes "
            f"{_PROGRESSIVE_FACTOR * limits.max_pixels / 1e6:.1f}. Make it smaller, or save it as a baseline JPEG."
        )
    scale = 1
    if width * height > _FULL_DECODE_PIXELS:
        room = min(width // served[0], height // served[1]) // _OVERSAMPLING
        scale = max(s for s in (1, 2, 4, 8) if s <= max(room, 1))
    while scale < 8 and (width // scale) * (height // scale) > limits.max_pixels:
        scale *= 2
    if scale > 1:
        jpeg.draft(None, (width // scale, height // scale))


_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}

# --- what a person sees ----------------------------------------------------------------------------------------------

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes each orientation upright (EXIF 2.32, tag 0x0112)."""
_SWAPS_SIDES = {_UPRIGHT[value] for value in (5, 6, 7, 8)}


def _orientation(opened: ImageFile) -> Image.Transpose | None:
    """What turns the picture upright, by its EXIF; None where it is upright, has none or has a broken one.

    Reads the EXIF block itself, because `getexif` would also believe XMP, which no viewer does.
    """
    exif = Image.Exif()
    try:
        exif.load(opened.info.get("exif") or _exif_behind_pixels(opened))
        return _UPRIGHT.get(exif.get(_EXIF_ORIENTATION, 1))
    except Exception:  # a broken EXIF block raises nearly anything; viewers show such pictures as they lie
        return None


def _upright_size(opened: ImageFile) -> tuple[int, int]:
    width, height = opened.size
    return (height, width) if _orientation(opened) in _SWAPS_SIDES else (width, height)


_MAX_CHUNKS = 65_536
"""How many chunks of a PNG are looked through for its EXIF. Programs write one of pixels for each 8 KB or more."""


def _exif_behind_pixels(opened: ImageFile) -> bytes:
    """The eXIf chunk of a PNG that stands after its pixels, where it may; `b""` where there is none.

    The parser would come upon it only after the pixels, whose size depends on it (PNG third edition, 11.3.4.5).
    """
    file = opened.fp
    if not isinstance(opened, PngImageFile) or file is None:
        return b""
    position = file.tell()
    try:
        file.seek(_PNG_SIGNATURE_BYTES)
        for _ in range(_MAX_CHUNKS):
            head = file.read(8)
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            if kind == b"eXIf":
                return file.read(length)
            if kind in (b"IEND", b""):
                break
            file.seek(length + 4, SEEK_CUR)  # and its checksum
        return b""
    finally:
        file.seek(position)


def _load_rgb(opened: ImageFile, background: tuple[int, int, int]) -> Image.Image:
    """Decodes the pixels, whatever their mode, to 8-bit RGB with transparent parts laid on the background."""
    depth = _png_bit_depth(opened)  # now: loading lets go of the file
    opened.load()
    if "A" in opened.getbands() or "transparency" in opened.info:
        return _on_background(_to_rgba(opened, depth), background)
    if opened.mode == "I;16":
        return _grey_16_to_8(opened).convert("RGB")
    # 16-bit RGB is RGB here: Pillow keeps the high byte of each value. Converting RGB to RGB would copy it.
    return opened if opened.mode == "RGB" else opened.convert("RGB")


def _to_rgba(opened: ImageFile, png_bit_depth: int) -> Image.Image:
    transparent = opened.info.get("transparency")
    if "A" in opened.getbands() or opened.mode == "P" or transparent is None:
        return opened.convert("RGBA")
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


def _on_background(rgba: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    alpha = rgba.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return rgba.convert("RGB")
    canvas = Image.new("RGB", rgba.size, background)
    canvas.paste(rgba, mask=alpha)
    return canvas


def _grey_16_to_8(grey: Image.Image) -> Image.Image:
    """round(value / 257): 65535 becomes 255. (Pillow's own conversion clips: all above 255 is white.)"""
    return grey.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")


def _png_bit_depth(opened: ImageFile) -> int:
    """Bits a channel, from a PNG's IHDR, its first chunk; 8 for everything else."""
    file = opened.fp
    if not isinstance(opened, PngImageFile) or file is None:
        return 8
    position = file.tell()
    file.seek(_PNG_SIGNATURE_BYTES + 16)
    depth = file.read(1)[0]
    file.seek(position)
    return depth


@contextmanager
def _errors_in_our_words() -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except (MemoryError, Image.DecompressionBombError):
        raise ImageTooLarge(
            "this picture takes more memory to decode than this server allows. Make it smaller."
        ) from None
    except Exception:  # on hostile files parsers raise nearly anything, with texts that are theirs
        raise ImageUnreadable(
            "this picture is truncated or corrupt and cannot be decoded. Check that the whole file was sent."
        ) from None
