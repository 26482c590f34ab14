"""What a request may cost: its pictures, its recordings, what it leaves behind."""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec

from sightline.errors import InvalidRequest

MIB = 1024 * 1024
_PLACE: Final = re.compile(r"[a-z][a-z0-9+.-]*://.")


class ImageLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a picture may cost before anyone decodes it, and while."""

    max_bytes: int = 20 * MIB
    """Of one picture file."""
    max_pixels: int = 4096 * 4096
    """Counted after scaled decode, so that a 48-megapixel photograph works and a lossless bomb does not."""
    max_side: int = 16_384
    max_images: int = 64
    """In one request, whatever the model allows."""
    decoders: int = 2
    """Decoder processes at once."""
    decoder_memory_bytes: int = 1024 * MIB
    """Address space of one decoder."""
    decoder_cpu_s: int = 5
    """CPU seconds for one picture."""
    background: tuple[int, int, int] = (255, 255, 255)
    """What transparent pictures are laid on."""
    cache_bytes: int = 256 * MIB
    """Of decoded pictures kept for the next request that sends the same file; 0: none are. Of the files themselves, an
    eighth as many bytes are kept beside them."""


class AudioLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a recording may cost before an engine hears it."""

    max_bytes: Annotated[int, msgspec.Meta(ge=1)] = 32 * MIB
    """Of the file; `http.max_body_bytes` bounds the whole request."""
    max_s: Annotated[int, msgspec.Meta(ge=1, le=86_400)] = 1800
    """Seconds, counted while it is decoded: a few kilobytes can hold hours of silence."""
    decoders: Annotated[int, msgspec.Meta(ge=1)] = 2
    """Decoder processes at once."""
    decoder_memory_bytes: Annotated[int, msgspec.Meta(ge=256 * MIB)] = 1024 * MIB
    """Address space of one decoder."""
    decoder_cpu_s: Annotated[int, msgspec.Meta(ge=1)] = 60
    """CPU seconds for one recording."""


class OptimizedPictures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `POST /analyze/optimized` makes of a picture before a model sees it."""

    max_side: Annotated[int, msgspec.Meta(ge=64, le=16_384)] = 1024
    """Pixels of the longer side, at most."""
    jpeg_quality: Annotated[int, msgspec.Meta(ge=1, le=95)] = 85


class ResponseLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much is kept of the Responses API's responses, in memory, for those who go on from one."""

    max_bytes: Annotated[int, msgspec.Meta(ge=0)] = 256 * MIB
    """With their pictures, each counted once. What was used longest ago goes first."""
    max_age_s: Annotated[float, msgspec.Meta(gt=0)] = 86_400.0
    """After the last use."""


class FileLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Files that clients send to `/v1/files`, and those that batches write."""

    url: str | None = None
    """Where their bytes are kept, as fsspec writes it: `s3://bucket/prefix`; None: in the data directory."""
    max_bytes: Annotated[int, msgspec.Meta(ge=1)] = 512 * MIB
    """Of one file."""
    max_tenant_bytes: Annotated[int, msgspec.Meta(ge=0)] = 16 * 1024 * MIB
    """Of all that one tenant keeps, what batches write left out."""

    def __post_init__(self) -> None:
        # Of what is no address fsspec makes a directory below the one in which the server happens to run.
        if self.url is not None and (not _PLACE.match(self.url) or self.url.startswith(("http:", "https:"))):
            raise InvalidRequest(
                "files.url is an address that can be written to, such as s3://bucket/prefix or file:///mnt/shared.",
                param="files.url",
            )


class BatchLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a batch may hold, and how much of it runs."""

    max_lines: Annotated[int, msgspec.Meta(ge=1)] = 50_000
    max_bytes: Annotated[int, msgspec.Meta(ge=1)] = 200_000_000
    """Of the input file."""
    max_concurrent: Annotated[int, msgspec.Meta(ge=0)] = 16
    """Lines, of all batches together, that are asked at once; 0: this server answers none."""
    kept_s: Annotated[int, msgspec.Meta(ge=3_600)] = 30 * 86_400
    """How long a batch or an analysis is known after it has ended. What batches write has an expiry of its own."""
