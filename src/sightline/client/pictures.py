"""Pictures as a program has them, to the URL that is sent. Nothing is resized here: the server knows its models."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import numpy.typing as npt
import pybase64

if TYPE_CHECKING:
    import PIL.Image

Picture: TypeAlias = Union[str, "os.PathLike[str]", bytes, "PIL.Image.Image", npt.NDArray[Any]]
"""A path; a URL (`https:`, `http:` or `data:`), which the server fetches where its operator allows it; a file's bytes;
a PIL picture; or pixels as an array of uint8, shape [height, width] (grey), [height, width, 3] (RGB) or
[height, width, 4] (RGBA)."""

_URLS = ("https:", "http:", "data:")


def to_url(picture: Picture) -> str:
    """Raises `OSError` for a file that cannot be read, `TypeError` and `ValueError` for what is no picture."""
    match picture:
        case str() if not picture:
            raise ValueError("its name is empty")
        case str() if picture.startswith(_URLS):
            return picture
        case str() | os.PathLike():
            with open(picture, "rb") as file:
                return _to_data_url(file.read())
        case bytes() | bytearray() | memoryview():
            return _to_data_url(bytes(picture))
        case np.ndarray():
            return _to_data_url(_array_to_png(picture))
        case _ if hasattr(picture, "save") and hasattr(picture, "getbands"):
            return _to_data_url(_pil_to_png(picture))
        case _:
            raise TypeError(
                "A picture is a path, a URL, a file's bytes, a PIL picture or a numpy array, "
                f"not {type(picture).__name__}."
            )


def _to_data_url(data: bytes) -> str:
    """Without a media type: the server goes by the file's first bytes, whatever anyone declares."""
    return f"data:;base64,{pybase64.b64encode(data).decode('ascii')}"


def _array_to_png(pixels: npt.NDArray[Any]) -> bytes:
    from PIL import Image

    if pixels.dtype != np.uint8:
        raise ValueError(f"Pixels are uint8, 0 to 255, not {pixels.dtype}: scale them first.")
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)) or 0 in pixels.shape:
        raise ValueError(
            "Pixels have the shape [height, width], [height, width, 3] or [height, width, 4], "
            f"not {list(pixels.shape)}."
        )
    return _encode(Image.fromarray(np.ascontiguousarray(pixels)))


def _pil_to_png(picture: Any) -> bytes:
    """Upright, as its orientation flag has it: PNG's own place for that flag is not read everywhere."""
    from PIL import Image, ImageOps

    assert isinstance(picture, Image.Image)
    upright = ImageOps.exif_transpose(picture)
    lossless = upright.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
    return _encode(upright if lossless else upright.convert("RGB"))


def _encode(picture: Any) -> bytes:
    file = io.BytesIO()
    picture.save(
        file, "PNG", compress_level=1
    )  # loopback and networks are quick; the best level takes ten times as long
    return file.getvalue()
