"""What becomes of a request's pictures on one model, and what its prompt costs there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from sightline import metrics
from sightline.config import Settings
from sightline.engine_request import (
    refuse_too_many_pictures,
    refuse_unsupported,
    smallest_picture,
    to_engine_request,
)
from sightline.engines import EngineInfo
from sightline.errors import EngineError, ImageUnreadable
from sightline.images.intake import Intake, ResolvedImage
from sightline.images.plan import Room, picture_budget
from sightline.models import ServedModel
from sightline.routing import Quarantine
from sightline.schemas import verify_schemas
from sightline.types import ChatRequest, EngineRequest, ImageRef, TokenCount

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Understood:
    """A request whose pictures have been looked at."""

    token_count: TokenCount
    resolved: tuple[ResolvedImage, ...] = ()


class Understanding:
    """For every request and model alike."""

    def __init__(self, settings: Settings, intake: Intake, quarantine: Quarantine) -> None:
        self._settings = settings
        self._intake = intake
        self._quarantine = quarantine

    async def of(self, request: ChatRequest, model: ServedModel, info: EngineInfo) -> Understood:
        """The pictures at the size at which they are served, and what the prompt costs with them.

        The engine counts the text, with the smallest picture in each one's place; what pictures cost is arithmetic.
        Only where pictures of any size might not fit are their sizes looked at before they are decoded.

        Raises an `ImageError`, `UnsupportedFeature`, `InvalidRequest`, `ContextLengthExceeded`, an `EngineError`.
        """
        refuse_unsupported(request, info)
        verify_schemas(request)
        refuse_too_many_pictures(request, info, model.config, self._settings.images.max_images)
        vision, refs = info.vision, request.images
        if vision is None or not refs:
            return Understood(await _count_tokens(model, to_engine_request(request, (), 0)))
        configured = model.config.picture_size, self._settings.picture_size
        budgets = [picture_budget(vision, ref, *configured) for ref in refs]
        standing_in = to_engine_request(request, [smallest_picture(budget) for budget in budgets], 0)
        count = await _count_tokens(model, standing_in)
        room = Room(info.context_length, count.text_tokens, request.sampling.max_tokens, count.exact)
        tight = None if room.holds_any(budgets) else room
        resolved = await self._intake.resolve(refs, budgets, tenant=request.tenant, room=tight)
        self._refuse_quarantined(refs, resolved)
        tokens = tuple(vision.tokens(r.image.served_width, r.image.served_height) for r in resolved)
        understood = Understood(TokenCount(room.text + sum(tokens), tokens, count.exact), resolved)
        metrics.IMAGES_SCALED_TO_FIT.labels(model.name).inc(sum(r.scaled_to_fit for r in resolved))
        _log(request, understood)
        return understood

    def _refuse_quarantined(self, refs: Sequence[ImageRef], resolved: Sequence[ResolvedImage]) -> None:
        for ref, picture in zip(refs, resolved, strict=True):
            if self._quarantine.holds(picture.image.digest):
                raise ImageUnreadable(
                    f"The model's engine broke down twice while it had this picture ({picture.image.digest}); it is "
                    "not served for some minutes. Send another, or this one saved anew in another format.",
                    param=ref.param,
                )


def _log(request: ChatRequest, understood: Understood) -> None:
    """One line a request: digests, types, sizes, tokens and times; never content, and no part of a URL."""
    if not log.isEnabledFor(logging.INFO):
        return
    pictures = [
        f"{r.image.digest} {r.image.media_type} {r.image.num_bytes} B {r.image.width}x{r.image.height} as "
        f"{r.image.served_width}x{r.image.served_height}{' (to fit)' if r.scaled_to_fit else ''}, {tokens} tokens, "
        f"{r.fetch_s + r.decode_s + r.resize_s:.4f} s"
        for r, tokens in zip(understood.resolved, understood.token_count.image_tokens, strict=True)
    ]
    log.info("request %s: %s", request.request_id, "; ".join(pictures))


async def _count_tokens(model: ServedModel, request: EngineRequest) -> TokenCount:
    """Counting has no effects, so where the engine's process died under it, the next one is simply asked."""
    try:
        return await model.engine.count_tokens(request)
    except EngineError:
        if model.state != "loading":
            raise
        return await model.engine.count_tokens(request)
