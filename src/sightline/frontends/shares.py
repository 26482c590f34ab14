"""What each process of a server may use of what its settings allow the server. Pure."""

from __future__ import annotations

import msgspec

from sightline.config import Settings


def front_end_share(settings: Settings, processes: int) -> Settings:
    """Of one of so many front ends: its part of the picture cache, of decoders and downloads (one at least), of the
    bodies in memory (the largest at least). Batches are worked on by the core.

    Numbers of connections are not divided: whose connections come to which front end is chance, and nobody is to be
    refused by it.
    """
    replace = msgspec.structs.replace
    return replace(
        settings,
        images=replace(
            settings.images,
            cache_bytes=settings.images.cache_bytes // processes,
            decoders=_part(settings.images.decoders, processes),
        ),
        fetch=replace(settings.fetch, max_at_once=_part(settings.fetch.max_at_once, processes)),
        http=replace(
            settings.http,
            max_held_bytes=max(settings.http.max_body_bytes, settings.http.max_held_bytes // processes),
        ),
        batches=replace(settings.batches, max_concurrent=0),
    )


def core_share(settings: Settings) -> Settings:
    """It looks at the pictures of batches and of responses in the background only, and keeps none."""
    return msgspec.structs.replace(
        settings, images=msgspec.structs.replace(settings.images, cache_bytes=0, decoders=1)
    )  # fmt: skip


def _part(whole: int, processes: int) -> int:
    return max(1, whole // processes)
