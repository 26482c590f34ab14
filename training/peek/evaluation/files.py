"""Pictures as files: blur, noise, JPEG or PNG, stored turned with the Exif flag that turns them back."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFilter, ImageOps

from training.peek.evaluation.drawing import Scene, draw


@dataclass(frozen=True, slots=True)
class Photograph:
    """A picture that is there already: it is sent as it is."""

    file: Path


Picture = Scene | Photograph

_STORED = {
    # Exif 2.32, tag 274: what the flag says was done to the picture, so what has to be done before it is stored
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def encode(picture: Picture) -> bytes:
    """The bytes of a picture file."""
    if isinstance(picture, Photograph):
        return picture.file.read_bytes()
    finish, image = picture.finish, upright(picture)
    if finish.orientation in _STORED:
        image = image.transpose(_STORED[finish.orientation])
    exif = Image.Exif()
    if finish.orientation != 1:
        exif[ExifTags.Base.Orientation] = finish.orientation
    kind, _, quality = finish.encoding.partition(":")
    file = io.BytesIO()
    if kind == "jpeg":
        image.save(file, "JPEG", quality=int(quality), exif=exif)
    else:
        image.save(file, "PNG", compress_level=1, exif=exif)
    return file.getvalue()


def upright(picture: Picture) -> Image.Image:
    """The picture as a person sees it, RGB: with its blur and noise, without the losses of its file format."""
    if isinstance(picture, Photograph):
        with Image.open(picture.file) as photograph:
            return ImageOps.exif_transpose(photograph).convert("RGB")
    image = Image.fromarray(draw(picture))
    if picture.finish.blur:
        image = image.filter(ImageFilter.GaussianBlur(picture.finish.blur))
    if picture.finish.noise:
        rng, pixels = np.random.default_rng(picture.seed), np.asarray(image, np.float32)
        pixels = pixels + picture.finish.noise * rng.standard_normal(pixels.shape, np.float32)
        image = Image.fromarray(np.rint(np.clip(pixels, 0, 255)).astype(np.uint8))
    return image


def media_type(picture: Picture) -> str:
    if isinstance(picture, Photograph):
        with Image.open(picture.file) as image:
            return image.get_format_mimetype() or "application/octet-stream"
    return "image/jpeg" if picture.finish.encoding.startswith("jpeg") else "image/png"
