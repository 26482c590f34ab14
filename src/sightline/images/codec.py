"""Bytes to pixels: identify, verify, open, orient, lay on a background, scale. Pure; runs in the decoder processes.

A picture is what a person would see: upright, transparent parts on the background, in sRGB with 8 bits a channel.
Files are hostile until proved otherwise: the magic bytes choose one parser, what the header claims is checked before
any pixel is decoded, no metadata but orientation and colour profile is looked at, and errors are in our words, never
the parser's. Errors do not say which picture they are about; the caller knows.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, TypeAlias

import msgspec
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from sightline.config import ImageLimits
from sightline.errors import ImageError, ImageFormatUnsupported, ImageTooLarge, ImageTooSmall, ImageUnreadable
from sightline.images.budget import VisionBudget
from sightline.images.colour import Flat, flatten, to_srgb
from sightline.images.headers import png_exif, verify_jpeg_kind, webp_canvas
from sightline.images.identify import HEAD_BYTES, MediaType, animated, identify


class Picture(msgspec.Struct, frozen=True, tag=True):
    """What was found in a file, beside its pixels. Sizes in pixels, upright."""

    media_type: MediaType
    width: int
    height: int
    served_width: int
    served_height: int
    decode_s: float
    """Seconds from the file to upright pixels at the size it was decoded."""
    resize_s: float
    """Seconds from there to sRGB at the served size."""


class Inspected(msgspec.Struct, frozen=True, tag=True):
    """What a file's header says of its picture. Sizes in pixels, upright."""

    media_type: MediaType
    width: int
    height: int


class Recompressed(msgspec.Struct, frozen=True, tag=True):
    """A picture that was made smaller, as a JPEG. Sizes in pixels, upright."""

    media_type: MediaType
    """Of the file that it was made from, as are width and height."""
    width: int
    height: int
    served_width: int
    served_height: int
    num_bytes: int
    """Of the JPEG."""


def inspect(file: BinaryIO, limits: ImageLimits) -> Inspected:
    """What the one picture in a file is, from its header alone: no pixel is decoded.

    Raises what `decode` raises, as far as the header can tell.
    """
    with _opened(file, limits) as (media_type, opened):
        inspected = Inspected(media_type, *_upright_size(opened, _turn(opened)))  # now: the next line changes it
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
        size, served, flat = _upright(opened, lambda width, height: budget.serve(width, height)[:2], limits)
        decoded = time.perf_counter()
        rgb = to_srgb(Flat(flat.pixels.resize(served, _FILTERS[budget.resample]), flat.profile))
        resized = time.perf_counter()
        picture = Picture(media_type, *size, *served, decode_s=decoded - began, resize_s=resized - decoded)
        return picture, rgb.tobytes()


def recompress(file: BinaryIO, max_side: int, quality: int, limits: ImageLimits) -> tuple[Recompressed, bytes]:
    """The one picture in a file as a baseline JPEG without metadata, whose longer side is at most `max_side`; never
    larger than it was. `quality` is libjpeg's, 1..95.

    Raises what `decode` raises.
    """

    def fit(width: int, height: int) -> tuple[int, int]:
        scale = min(1.0, max_side / max(width, height))
        return max(2, round(width * scale)), max(2, round(height * scale))

    with _opened(file, limits) as (media_type, opened):
        size, served, flat = _upright(opened, fit, limits)
        rgb = to_srgb(Flat(flat.pixels.resize(served, Image.Resampling.LANCZOS), flat.profile))
        rgb.info = {}  # or a comment of the file would be written again
        jpeg = io.BytesIO()
        rgb.save(jpeg, "JPEG", quality=quality)
        return Recompressed(media_type, *size, *served, jpeg.tell()), jpeg.getvalue()


def _upright(
    opened: ImageFile, fit: Callable[[int, int], tuple[int, int]], limits: ImageLimits
) -> tuple[tuple[int, int], tuple[int, int], Flat]:
    """Its upright size, the size that `fit` gives it, and its pixels, upright, of that size or larger."""
    turn = _turn(opened)
    size = _upright_size(opened, turn)
    served = fit(*size)
    _scale_while_decoding(opened, served[::-1] if turn in _SWAPS_SIDES else served, limits)
    _verify_pixels(*opened.size, limits)
    claimed = opened.size
    pixels, profile = flatten(opened, limits.background)
    if pixels.size != claimed:
        raise ImageUnreadable("this picture is not of the size that its header claims. Save it anew.")
    return size, served, Flat(pixels if turn is None else pixels.transpose(turn), profile)


_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


# --- opening ---------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(file: BinaryIO, limits: ImageLimits) -> Iterator[tuple[MediaType, ImageFile]]:
    """The picture of a file, its header read and found to be one that is taken. Errors within are in our words."""
    with _errors_in_our_words():
        media_type = identify(file.read(HEAD_BYTES))
        _verify_unopened(file, media_type, limits)
        file.seek(0)
        opened = _PARSERS[media_type](file)
        _verify_sides(*opened.size, limits)
        yield media_type, opened


def _verify_unopened(file: BinaryIO, media_type: MediaType, limits: ImageLimits) -> None:
    """What would cost too much, or be told in too few words, if the parser came upon it."""
    match media_type:
        case "image/jpeg":
            verify_jpeg_kind(file)
        case "image/png":
            png_exif(file)
        case "image/webp" if canvas := webp_canvas(file):
            _verify_pixels(*canvas, limits)  # the parser allocates the canvas twice, on opening the file


_Parser: TypeAlias = Callable[[BinaryIO], ImageFile]


def _still(parser: _Parser) -> _Parser:
    """For formats that may be animated."""

    def open_still(file: BinaryIO) -> ImageFile:
        opened = parser(file)
        if getattr(opened, "is_animated", False):  # for GIF, this looks no further than the second frame
            raise animated()
        return opened

    return open_still


def _avif(file: BinaryIO) -> ImageFile:
    from PIL import AvifImagePlugin  # here and below: most decoder processes never need it

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each has a stack, and the pool decides how many cores are used
    return AvifImagePlugin.AvifImageFile(file)


def _heic(file: BinaryIO) -> ImageFile:
    """The primary picture, turned upright by the parser. Beside it a file may have others, which no viewer shows."""
    try:
        import pi_heif
    except ImportError:
        raise ImageFormatUnsupported(
            "this is a HEIC file, and this server lacks what decodes it (pip install pi-heif). Send a JPEG or PNG."
        ) from None
    pi_heif.options.THUMBNAILS = pi_heif.options.DEPTH_IMAGES = pi_heif.options.AUX_IMAGES = False
    pi_heif.options.DECODE_THREADS = 1
    opened: ImageFile = pi_heif.HeifImageFile(file)
    return opened


_TIFF_COMPRESSION, _TILE_WIDTH, _TILE_HEIGHT = 259, 322, 323
_TIFF_COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32773, 32946}
"""None, CCITT (three), LZW, JPEG, deflate, PackBits, deflate under its old number (TIFF 6.0 and its supplement 2)."""
_MAX_TILE_PIXELS = 4096 * 4096


def _tiff(file: BinaryIO) -> ImageFile:
    """One page, turned upright by the parser."""
    from PIL.TiffImagePlugin import TiffImageFile

    try:
        opened = TiffImageFile(file)
    except SyntaxError as error:
        if isinstance(error.__cause__, KeyError):  # not in the parser's tables of compressions and layouts
            raise ImageFormatUnsupported(
                "this TIFF file keeps its pixels in a way that is not taken here. Save it as 8-bit RGB with LZW. Send "
                "that."
            ) from None
        raise
    if opened.is_animated:
        raise ImageFormatUnsupported("this TIFF file has more than one page. Send one page as a single picture.")
    compression = opened.tag_v2.get(_TIFF_COMPRESSION, 1)
    if compression not in _TIFF_COMPRESSIONS:
        raise ImageFormatUnsupported(
            f"this TIFF file is compressed in a way (number {compression}) that is not taken here. Save it with LZW or "
            "deflate. Send that."
        )
    if opened.tag_v2.get(_TILE_WIDTH, 0) * opened.tag_v2.get(_TILE_HEIGHT, 0) > _MAX_TILE_PIXELS:
        raise ImageTooLarge(
            "this TIFF file's tiles take too much memory to decode. Save it in strips or smaller tiles."
        )
    opened.info.pop("xmp", None)  # or the parser would believe an orientation in there, which no viewer does
    return opened


_PARSERS: dict[MediaType, _Parser] = {
    "image/jpeg": JpegImageFile,  # not Image.open, which makes a multi-picture file (MPO) of some phones' photographs
    "image/png": _still(PngImageFile),
    "image/webp": _still(WebPImageFile),
    "image/gif": _still(GifImageFile),
    "image/bmp": BmpImageFile,
    "image/tiff": _tiff,
    "image/avif": _still(_avif),
    "image/heic": _heic,
}
"""The only parsers that a file can reach."""


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


# --- what it may cost ------------------------------------------------------------------------------------------------

_FULL_DECODE_PIXELS = 4_000_000
"""JPEGs up to this size are decoded whole, and so exactly as the reference does; it takes 50 ms."""
_OVERSAMPLING = 1.5
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

    Only above 4 megapixels, and to no less than 1.5 times the served size on both sides: `make bench-images` measures
    what that saves and how close it is. Only where a JPEG is over the pixel limit even then, it is scaled further until
    it fits: the limit is about cost, and a 100-megapixel photograph works.

    `served` is not upright: as the file lies. A progressive JPEG keeps every coefficient in memory at any scale, so it
    has a limit of its own. Other formats have no such thing.
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
        room = min(width / served[0], height / served[1]) / _OVERSAMPLING
        scale = max(s for s in (1, 2, 4, 8) if s <= max(room, 1))
    while scale < 8 and (width // scale) * (height // scale) > limits.max_pixels:
        scale *= 2
    if scale > 1:
        jpeg.draft(None, (width // scale, height // scale))


# --- upright ---------------------------------------------------------------------------------------------------------

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


def _turn(opened: ImageFile) -> Image.Transpose | None:
    """What turns the picture upright, by its EXIF; None where it is upright, has none or has a broken one.

    Reads the EXIF block itself, because `getexif` would also believe XMP, which no viewer does. For AVIF the parser has
    written into it what the file's `irot` and `imir` say, and nothing else counts there.
    """
    if opened.format in ("TIFF", "HEIF"):
        return None  # their parsers turn them
    exif = Image.Exif()
    try:
        block = opened.info.get("exif")
        if not block and isinstance(opened, PngImageFile) and opened.fp:
            block = png_exif(opened.fp)
        exif.load(block or b"")
        return _UPRIGHT.get(exif.get(_EXIF_ORIENTATION, 1))
    except Exception:  # a broken EXIF block raises nearly anything; viewers show such pictures as they lie
        return None


def _upright_size(opened: ImageFile, turn: Image.Transpose | None) -> tuple[int, int]:
    width, height = opened.size
    return (height, width) if turn in _SWAPS_SIDES else (width, height)
