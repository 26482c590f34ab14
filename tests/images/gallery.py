"""One scene in every form that a file can give it, each with what a person sees when they open it.

Lossless forms come with their exact pixels; those are computed here, never by the code under test.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pillow_heif
from PIL import Image, ImageDraw

from tests.images.samples import encode

pillow_heif.register_heif_opener()  # of which only the encoder is wanted: Sightline itself has none

Array = npt.NDArray[Any]
EXACT, ROUNDED, LOSSY = 99.0, 45.0, 35.0
"""The PSNR in dB that a form must reach: every pixel equal; levels of another depth rounded; a lossy format."""

LIES = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: np.rot90(upright, -1),
}
"""How an upright picture lies in a file of each orientation (EXIF 2.32, tag 0x0112), written with numpy."""


class Form(NamedTuple):
    name: str
    file: bytes
    seen: Array
    """[height, width, 3] of 0..255, as a person sees it on white."""
    least_db: float
    is_grey: bool = False


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def scene() -> npt.NDArray[np.uint8]:
    """[168, 224, 3]: on white, a red circle at the top left and below its right a blue arrow that points left."""
    image = Image.new("RGB", (224 * 4, 168 * 4), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((60, 50, 290, 280), fill=(220, 30, 40))
    draw.polygon(
        [(440, 470), (610, 350), (610, 425), (800, 425), (800, 515), (610, 515), (610, 590)], fill=(30, 60, 210)
    )
    return np.asarray(image.resize((224, 168), Image.Resampling.BOX))


def psnr_db(one: Array, other: Array) -> float:
    """Peak signal-to-noise ratio: 10 log10(255^2 / mean squared error); 99 for equal ones."""
    return min(99.0, float(10 * np.log10(255**2 / max(np.mean((one.astype(float) - other) ** 2), 1e-9))))


# --- PNG, written by hand for what Pillow does not write --------------------------------------------------------------

_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column, first row, step in columns, step in rows of each pass (PNG third edition, 8.2)."""


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int,
    height: int,
    depth: int,
    colour: int,
    rows: list[bytes],
    *before: bytes,
    after: bytes = b"",
    interlaced: bool = False,
) -> bytes:
    """Filter 0, chunks before and after the pixels; rows as they go into the file, of all passes if interlaced."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + pixels + after + chunk(b"IEND", b"")


def packed(values: Array, depth: int) -> bytes:
    """One row [width, channels] of whole numbers of so many bits."""
    if depth == 16:
        return values.astype(">u2").tobytes()
    bits = np.unpackbits(values.astype(np.uint8).reshape(-1, 1), axis=1)[:, -depth:]
    return np.packbits(bits.ravel()).tobytes()


def png_of(values: Array, depth: int, colour: int, *before: bytes, interlaced: bool = False) -> bytes:
    """[height, width, channels] of whole numbers of so many bits, as a PNG of that colour type."""
    height, width = values.shape[:2]
    passes = [values[y::dy, x::dx] for x, y, dx, dy in _ADAM7] if interlaced else [values]
    rows = [packed(row, depth) for part in passes if part.size for row in part]
    return png(width, height, depth, colour, rows, *before, interlaced=interlaced)


# --- TIFF, likewise ---------------------------------------------------------------------------------------------------


def tiff(
    values: Array, photometric: int, *, big_endian: bool = False, tile: int = 0, extra: int | None = None
) -> bytes:
    """[height, width, channels] of uint8 or uint16, uncompressed, in one strip or in square tiles."""
    mark, dtype = (">", values.dtype.newbyteorder(">")) if big_endian else ("<", values.dtype.newbyteorder("<"))
    height, width, channels = values.shape
    blocks = [values]
    if tile:
        padded = np.pad(values, ((0, -height % tile), (0, -width % tile), (0, 0)), mode="edge")
        blocks = [
            padded[y : y + tile, x : x + tile]
            for y in range(0, padded.shape[0], tile)
            for x in range(0, padded.shape[1], tile)
        ]
    body = b"".join(block.astype(dtype).tobytes() for block in blocks)
    size = len(body) // len(blocks)
    offsets = [8 + i * size for i in range(len(blocks))]
    tags: dict[int, list[int]] = {256: [width], 257: [height], 258: [values.itemsize * 8] * channels, 259: [1]}
    tags |= {262: [photometric], 277: [channels]}
    tags |= {322: [tile], 323: [tile], 324: offsets, 325: [size] * len(blocks)} if tile else {}
    tags |= {} if tile else {273: offsets, 278: [height], 279: [size]}
    tags |= {} if extra is None else {338: [extra]}
    entries, outside = b"", b""
    behind = 8 + len(body) + 2 + 12 * len(tags) + 4
    for tag, numbers in sorted(tags.items()):
        data = struct.pack(f"{mark}{len(numbers)}I", *numbers)
        place = data if len(data) == 4 else struct.pack(mark + "I", behind + len(outside))
        outside += b"" if len(data) == 4 else data
        entries += struct.pack(mark + "HHI", tag, 4, len(numbers)) + place
    head = (b"MM" if big_endian else b"II") + struct.pack(mark + "HI", 42, 8 + len(body))
    return head + body + struct.pack(mark + "H", len(tags)) + entries + bytes(4) + outside


# --- colour profiles, likewise ----------------------------------------------------------------------------------------

SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
DISPLAY_P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
ADOBE_RGB = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
"""Primaries as columns, in XYZ adapted to D50 (the matrices of the published profiles)."""


def profile(primaries: Array, gamma: float | None = None, *, space: bytes = b"RGB ", size: int = 0) -> bytes:
    """An ICC profile (ICC.1:2022) of a display, with the curve of sRGB if no gamma is given; `size` pads it."""

    def numbers(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    srgb = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    curve = b"para\0\0\0\0\0\3\0\0" + numbers(*srgb) if gamma is None else b"para" + bytes(8) + numbers(gamma)
    text = b"mluc\0\0\0\0" + struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", 2, 28) + "x".encode("utf-16-be")
    tags = {b"desc": text, b"cprt": text, b"wtpt": b"XYZ \0\0\0\0" + numbers(0.9642, 1, 0.8249)}
    for name, column in zip("rgb", primaries.T, strict=True):
        tags[name.encode() + b"XYZ"] = b"XYZ \0\0\0\0" + numbers(*column)
        tags[name.encode() + b"TRC"] = curve
    tags |= {b"kTRC": curve} if space == b"GRAY" else {}
    start, table, body = 132 + 12 * len(tags), b"", b""
    for name_, data in tags.items():
        table += name_ + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    body += bytes(max(0, size - start - len(body)))
    head = struct.pack(">I4xI", start + len(body), 0x04300000) + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp"
    return (
        (head.ljust(68, b"\0") + numbers(0.9642, 1, 0.8249)).ljust(128, b"\0")
        + struct.pack(">I", len(tags))
        + table
        + body
    )


def stored_in(upright: Array, primaries: Array, gamma: float | None = None) -> npt.NDArray[np.uint8]:
    """The levels by which a wide space says what these sRGB levels say."""
    linear = upright / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    there = np.clip(linear @ (np.linalg.inv(primaries) @ SRGB).T, 0, 1)
    if gamma is None:
        there = np.where(there <= 0.0031308, there * 12.92, 1.055 * there ** (1 / 2.4) - 0.055)
    else:
        there = there ** (1 / gamma)
    return (there * 255).round().astype(np.uint8)


# --- the forms --------------------------------------------------------------------------------------------------------


def forms() -> Iterator[Form]:
    yield from opaque_forms()
    yield from transparent_forms()
    yield from grey_forms()
    yield from tiff_and_bmp_forms()
    yield from profiled_forms()
    yield from turned_forms()


def opaque_forms() -> Iterator[Form]:
    rgb = scene()
    image = Image.fromarray(rgb)
    yield Form("PNG", encode(rgb, "PNG"), rgb, EXACT)
    yield Form("PNG interlaced", png_of(rgb, 8, 2, interlaced=True), rgb, EXACT)
    deep = rgb.astype(np.uint16) * 257
    yield Form("PNG 16-bit", png_of(deep, 16, 2), rgb, EXACT)
    between = np.clip(deep.astype(np.int64) + np.indices(deep.shape).sum(0) % 257 - 128, 0, 65535)
    yield Form("PNG 16-bit, levels between", png_of(between, 16, 2), between / 257, ROUNDED)
    few = image.quantize(32, dither=Image.Dither.NONE)
    seen = np.asarray(few.convert("RGB"))
    yield Form("PNG palette", encode(few, "PNG"), seen, EXACT)
    for depth in (1, 2, 4):
        less = image.quantize(2**depth, dither=Image.Dither.NONE)
        form = encode(less, "PNG", bits=depth)
        yield Form(f"PNG palette {depth}-bit", form, np.asarray(less.convert("RGB")), EXACT, is_grey=depth == 1)
    yield Form("GIF", encode(few, "GIF"), seen, EXACT)
    yield Form("WebP lossless", encode(rgb, "WEBP"), rgb, EXACT)
    yield Form("WebP lossy", encode(rgb, "WEBP", lossless=False, quality=90), rgb, LOSSY)
    yield Form("JPEG", encode(rgb, "JPEG", quality=95, subsampling=0), rgb, LOSSY)
    yield Form("JPEG 4:2:0", encode(rgb, "JPEG", quality=95), rgb, LOSSY)
    yield Form("JPEG progressive", encode(rgb, "JPEG", quality=95, subsampling=0, progressive=True), rgb, LOSSY)
    ink = np.dstack([255 - rgb, np.zeros_like(rgb[..., 0])])
    yield Form("JPEG CMYK", encode(Image.fromarray(ink, "CMYK"), "JPEG", quality=95, subsampling=0), rgb, LOSSY)
    yield Form("AVIF", encode(rgb, "AVIF", quality=90, subsampling="4:4:4"), rgb, LOSSY)
    yield Form("AVIF 4:2:0", encode(rgb, "AVIF", quality=90), rgb, LOSSY)
    yield Form("HEIC", heic(rgb, quality=90, chroma=444), rgb, LOSSY)
    yield Form("HEIC 4:2:0", heic(rgb, quality=90), rgb, LOSSY)


def heic(pixels: Array, **options: Any) -> bytes:
    return encode(np.ascontiguousarray(pixels), "HEIF", **options)


def over_white(colours: Array, alpha: Array) -> Array:
    """Straight alpha [h, w] of 0..1 over white, in real numbers."""
    return colours * alpha[..., None] + 255 * (1 - alpha[..., None])


def transparent_forms() -> Iterator[Form]:
    """Two kinds: the white around the shapes is transparent; or all of it is, the more the further to the right."""
    rgb = scene()
    white = (rgb == 255).all(axis=-1)
    hidden = np.where(white[..., None], np.array([0, 0, 0], np.uint8), rgb)
    cut = np.dstack([hidden, np.where(white, 0, 255).astype(np.uint8)])
    fading = np.dstack([rgb, np.broadcast_to(np.linspace(255, 100, 224).round(), (168, 224)).astype(np.uint8)])
    faded = over_white(rgb, fading[..., 3] / 255)
    for kind, rgba, seen, least in (("cut out", cut, rgb, EXACT), ("fading", fading, faded, ROUNDED)):
        yield Form(f"PNG RGBA {kind}", encode(rgba, "PNG"), seen, least)
        yield Form(f"PNG RGBA 16-bit {kind}", png_of(rgba.astype(np.uint16) * 257, 16, 6), seen, least)
        yield Form(f"WebP RGBA {kind}", encode(rgba, "WEBP"), seen, least)
        yield Form(f"TIFF RGBA {kind}", encode(rgba, "TIFF", compression="tiff_lzw"), seen, least)
        yield Form(f"TIFF RGBA 16-bit {kind}", tiff(rgba.astype(np.uint16) * 257, 2, extra=2), seen, least)
        rows = rgba[::-1, :, [2, 1, 0, 3]].tobytes()
        yield Form(f"BMP RGBA {kind}", bmp(rows, 32, masks=BGRA), seen, least)
        yield Form(f"AVIF RGBA {kind}", encode(rgba, "AVIF", quality=95, subsampling="4:4:4"), seen, LOSSY)
        yield Form(f"HEIC RGBA {kind}", heic(rgba, quality=95, chroma=444), seen, LOSSY)
    premultiplied = (fading.astype(float) * (fading[..., 3:] / 255)).round().astype(np.uint8)
    premultiplied[..., 3] = fading[..., 3]
    yield Form("TIFF premultiplied", tiff(premultiplied, 2, extra=1), faded, ROUNDED)
    key = chunk(b"tRNS", struct.pack(">HHH", 0, 0, 0))
    yield Form("PNG tRNS", png_of(hidden, 8, 2, key), rgb, EXACT)
    yield Form("PNG 16-bit tRNS", png_of(hidden.astype(np.uint16) * 257, 16, 2, key), rgb, EXACT)
    few = Image.fromarray(hidden).quantize(16, dither=Image.Dither.NONE)
    at = int(np.asarray(few)[0, 0])
    seen = np.where((np.asarray(few) == at)[..., None], 255, np.asarray(few.convert("RGB")))
    yield Form("PNG palette tRNS", encode(few, "PNG", transparency=at), seen, EXACT)
    yield Form("GIF transparent", encode(few, "GIF", transparency=at), seen, EXACT)


def grey_forms() -> Iterator[Form]:
    grey = np.asarray(Image.fromarray(scene()).convert("L"))
    deep = grey.astype(np.uint16)[..., None] * 257
    seen = np.repeat(grey[..., None], 3, axis=-1)

    def form(name: str, file: bytes, seen: Array = seen, least: float = EXACT) -> Form:
        return Form(name, file, seen, least, is_grey=True)

    yield form("PNG grey", encode(grey, "PNG"))
    yield form("PNG grey 16-bit", png_of(deep, 16, 0))
    yield form("PNG grey interlaced", png_of(grey[..., None], 8, 0, interlaced=True))
    for depth in (1, 2, 4):
        levels = (grey >> (8 - depth))[..., None]
        exact = np.repeat(levels * (255 // (2**depth - 1)), 3, axis=-1)
        yield form(f"PNG grey {depth}-bit", png_of(levels, depth, 0), exact)
        light = max(1, 2**depth - 2)
        hole = np.where(levels == light, 255, exact)
        yield form(
            f"PNG grey {depth}-bit tRNS", png_of(levels, depth, 0, chunk(b"tRNS", struct.pack(">H", light))), hole
        )
    hole = np.where(grey[..., None] == 255, 255, seen)
    yield form("PNG grey 16-bit tRNS", png_of(deep, 16, 0, chunk(b"tRNS", b"\xff\xff")), hole)
    alpha = np.full_like(grey, 255)
    yield form("PNG grey + alpha", encode(Image.fromarray(np.dstack([grey, alpha]), "LA"), "PNG"))
    half = np.dstack([deep[..., 0], np.full_like(deep[..., 0], 128 * 257)])
    yield form(
        "PNG grey + alpha 16-bit", png_of(half, 16, 4), over_white(seen, np.full(grey.shape, 128 / 255)), ROUNDED
    )
    yield form("JPEG grey", encode(grey, "JPEG", quality=95), least=LOSSY)
    yield form("AVIF grey", encode(grey, "AVIF", quality=95), least=LOSSY)
    yield form("TIFF grey", encode(grey, "TIFF"))
    yield form("TIFF grey, white is zero", tiff(255 - grey[..., None], 0))
    for big_endian in (False, True):
        order = "big" if big_endian else "little"
        yield form(f"TIFF grey 16-bit {order} endian", tiff(deep, 1, big_endian=big_endian))
    yield form("TIFF grey 16-bit, white is zero", tiff(65535 - deep, 0))
    two = Image.fromarray(grey).point(lambda v: 255 if v > 127 else 0).convert("1")
    black_and_white = np.repeat(np.asarray(two)[..., None], 3, axis=-1) * 255
    for compression in ("group4", "packbits"):
        yield form(f"TIFF 1-bit {compression}", encode(two, "TIFF", compression=compression), black_and_white)


def tiff_and_bmp_forms() -> Iterator[Form]:
    rgb = scene()
    image = Image.fromarray(rgb)
    few = image.quantize(16, dither=Image.Dither.NONE)
    seen = np.asarray(few.convert("RGB"))
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        yield Form(f"TIFF {compression}", encode(rgb, "TIFF", compression=compression), rgb, EXACT)
    yield Form("TIFF jpeg", encode(rgb, "TIFF", compression="jpeg", quality=95), rgb, LOSSY)
    yield Form("TIFF tiles", tiff(rgb, 2, tile=64), rgb, EXACT)
    yield Form("TIFF 16-bit", tiff(rgb.astype(np.uint16) * 257, 2), rgb, EXACT)
    yield Form("TIFF 16-bit big endian", tiff(rgb.astype(np.uint16) * 257, 2, big_endian=True), rgb, EXACT)
    yield Form("TIFF palette", encode(few, "TIFF"), seen, EXACT)
    ink = np.dstack([255 - rgb, np.zeros_like(rgb[..., 0])])
    yield Form("TIFF CMYK", encode(Image.fromarray(ink, "CMYK"), "TIFF"), rgb, EXACT)

    bgr = rgb[..., ::-1]
    yield Form("BMP", encode(rgb, "BMP"), rgb, EXACT)
    yield Form("BMP palette", encode(few, "BMP"), seen, EXACT)
    yield Form("BMP top-down", bmp(bgr.tobytes(), 24, top_down=True), rgb, EXACT)
    padded = np.dstack([bgr, np.zeros_like(rgb[..., 0])])
    yield Form("BMP 32-bit", bmp(padded[::-1].tobytes(), 32), rgb, EXACT)
    yield Form("BMP 32-bit, alpha forgotten", bmp(padded[::-1].tobytes(), 32, masks=BGRA), rgb, EXACT)
    r, g, b = (rgb[..., c].astype(np.uint16) >> shift for c, shift in enumerate((3, 2, 3)))
    sixteen = (r << 11 | g << 5 | b).astype("<u2")
    exact = np.dstack([r * 255 / 31, g * 255 / 63, b * 255 / 31])
    file = bmp(sixteen[::-1].tobytes(), 16, masks=(0xF800, 0x7E0, 0x1F, 0))
    yield Form("BMP 16-bit", file, exact, ROUNDED)
    yield Form("BMP RLE", bmp_rle(few), seen, EXACT)


BGRA = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)


def bmp(rows: bytes, bits: int, *, top_down: bool = False, masks: tuple[int, ...] = ()) -> bytes:
    """224 x 168 pixels behind a BITMAPV4HEADER; rows as they go into the file."""
    header = struct.pack(
        "<IiiHHIIiiII", 108, 224, -168 if top_down else 168, 1, bits, 3 if masks else 0, len(rows), 0, 0, 0, 0
    )
    header = (header + struct.pack("<4I", *(masks or (0, 0, 0, 0)))).ljust(108, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + 108 + len(rows), 0, 0, 14 + 108) + header + rows


def bmp_rle(image: Image.Image) -> bytes:
    """The same with BITMAPINFOHEADER and run-length encoding (BI_RLE8)."""
    body = b""
    for row in np.asarray(image)[::-1]:
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(row)], strict=True):
            body += bytes([end - start, row[start]])
        body += b"\0\0"
    body += b"\0\1"
    palette = np.zeros((256, 4), np.uint8)
    colours = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    palette[: len(colours), :3] = colours[:, ::-1]
    header = struct.pack("<IiiHHIIiiII", 40, 224, 168, 1, 8, 1, len(body), 0, 0, 256, 0)
    start = 14 + 40 + palette.size
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + palette.tobytes() + body


def profiled_forms() -> Iterator[Form]:
    rgb = scene()
    p3, adobe = profile(DISPLAY_P3), profile(ADOBE_RGB, 563 / 256)
    in_p3, in_adobe = stored_in(rgb, DISPLAY_P3), stored_in(rgb, ADOBE_RGB, 563 / 256)
    yield Form("PNG Display P3", encode(in_p3, "PNG", icc_profile=p3), rgb, ROUNDED)
    yield Form("PNG Adobe RGB", encode(in_adobe, "PNG", icc_profile=adobe), rgb, ROUNDED)
    yield Form("WebP Display P3", encode(in_p3, "WEBP", icc_profile=p3), rgb, ROUNDED)
    yield Form("TIFF Adobe RGB", encode(in_adobe, "TIFF", icc_profile=adobe), rgb, ROUNDED)
    jpeg = encode(in_p3, "JPEG", quality=95, subsampling=0, icc_profile=p3)
    yield Form("JPEG Display P3", jpeg, rgb, LOSSY)
    yield Form("AVIF Display P3", encode(in_p3, "AVIF", quality=95, subsampling="4:4:4", icc_profile=p3), rgb, LOSSY)
    yield Form("HEIC Display P3", heic(in_p3, quality=95, chroma=444, icc_profile=p3), rgb, LOSSY)
    alpha = np.full_like(rgb[..., :1], 255)
    yield Form("PNG RGBA Display P3", encode(np.dstack([in_p3, alpha]), "PNG", icc_profile=p3), rgb, ROUNDED)
    yield Form("PNG sRGB by another name", encode(rgb, "PNG", icc_profile=profile(SRGB)), rgb, EXACT)
    yield Form("PNG broken profile", encode(rgb, "PNG", icc_profile=p3[:200] + b"\xff" * 300), rgb, EXACT)
    yield Form("PNG profile of CMYK", encode(rgb, "PNG", icc_profile=profile(DISPLAY_P3, space=b"CMYK")), rgb, EXACT)
    huge = profile(DISPLAY_P3, size=1_000_001)
    yield Form("JPEG profile of 1 MB", encode(rgb, "JPEG", quality=95, subsampling=0, icc_profile=huge), rgb, LOSSY)


def turned_forms() -> Iterator[Form]:
    rgb = scene()
    for orientation, lie in LIES.items():
        lying = np.ascontiguousarray(lie(rgb))
        yield Form(f"PNG orientation {orientation}", encode(lying, "PNG", exif=exif(orientation)), rgb, EXACT)
        yield Form(f"WebP orientation {orientation}", encode(lying, "WEBP", exif=exif(orientation)), rgb, EXACT)
        yield Form(f"TIFF orientation {orientation}", encode(lying, "TIFF", exif=exif(orientation)), rgb, EXACT)
        lzw = encode(lying, "TIFF", exif=exif(orientation), compression="tiff_lzw")
        yield Form(f"TIFF LZW orientation {orientation}", lzw, rgb, EXACT)
        jpeg = encode(lying, "JPEG", exif=exif(orientation), quality=95, subsampling=0)
        yield Form(f"JPEG orientation {orientation}", jpeg, rgb, LOSSY)
        avif = encode(lying, "AVIF", exif=exif(orientation), quality=90, subsampling="4:4:4")
        yield Form(f"AVIF orientation {orientation}", avif, rgb, LOSSY)
        turned = heic(lying, exif=exif(orientation).tobytes(), quality=90, chroma=444)
        yield Form(f"HEIC orientation {orientation}", turned, rgb, LOSSY)
