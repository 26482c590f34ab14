"""A client's request as one engine takes it: pictures in place of references to them, and nothing dropped silently.

Pure steps; `service.py` says when each is taken.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from sightline.config import ModelConfig
from sightline.engines import EngineInfo, Work
from sightline.errors import UnsupportedFeature
from sightline.images.budget import VisionBudget
from sightline.types import ChatRequest, EngineRequest, Image, Message, Text


def to_engine_request(request: ChatRequest, images: Sequence[Image], index: int) -> EngineRequest:
    """One choice of a request, with pictures in place of references to them, in the same order.

    Choices differ by seed: the client's, plus the choice's index.
    """
    pictures = iter(images)

    def part(content: object) -> Text | Image:
        return content if isinstance(content, Text) else next(pictures)

    messages = tuple(
        Message[Image](m.role, tuple(part(p) for p in m.content), m.tool_calls, m.tool_call_id, m.name)
        for m in request.messages
    )
    sampling = request.sampling
    if sampling.seed is not None and index:
        sampling = replace(sampling, seed=sampling.seed + index)
    return EngineRequest(
        request_id=request.request_id if request.n == 1 else f"{request.request_id}-{index}",
        model=request.model,
        messages=messages,
        sampling=sampling,
        tools=request.tools,
        tool_choice=request.tool_choice,
        response_format=request.response_format,
        priority=request.priority,
        tenant=request.tenant,
        prompt=request.prompt,
    )


def likeness(request: ChatRequest) -> Hashable:
    """Equal for requests that say and show the same; cheap, so of a picture's source its length and its end count."""
    return request.tenant, tuple(
        part.text if isinstance(part, Text) else (len(part.source), part.source[-64:])
        for message in request.messages
        for part in message.content
    )


def refuse_unsupported(request: ChatRequest, info: EngineInfo) -> None:
    """Raises `UnsupportedFeature` for what this engine would have to drop: nothing is dropped silently."""
    refuse_work("messages" if request.prompt is None else "completions", request.model, info)
    pictures = request.images
    if pictures and info.vision is None:
        raise UnsupportedFeature(
            f"The model {request.model!r} cannot see pictures. Send text only, or choose a model with vision.",
            param=pictures[0].param,
        )
    s = request.sampling
    has_tools = bool(request.tools) and request.tool_choice.mode != "none"
    wanted = {
        "seed": s.seed is not None,
        "top_k": s.top_k != 0,
        "min_p": s.min_p != 0.0,
        "presence_penalty": s.presence_penalty != 0.0,
        "frequency_penalty": s.frequency_penalty != 0.0,
        "repetition_penalty": s.repetition_penalty != 1.0,
        "logit_bias": bool(s.logit_bias),
        "logprobs": s.logprobs is not None,
        "min_tokens": s.min_tokens != 0,
        "ignore_eos": s.ignore_eos,
        "stop_token_ids": bool(s.stop_token_ids),
        "tools": has_tools,
        "parallel_tool_calls": has_tools and not request.tool_choice.parallel,
        "response_format": request.response_format.kind != "text",
    }
    for param, is_wanted in wanted.items():
        feature = {"response_format": request.response_format.kind}.get(param, param)
        feature = "penalties" if feature.endswith("_penalty") else feature
        if is_wanted and feature not in info.features:
            raise UnsupportedFeature(
                f"The model {request.model!r} runs on the engine {info.engine!r}, which does not support {param}.",
                param=param,
            )


def refuse_work(work: Work, model: str, info: EngineInfo) -> None:
    """Raises `UnsupportedFeature` for what the model does not do, or its engine does not do with it."""
    if work not in info.work:
        raise UnsupportedFeature(
            f"The model {model!r} on the engine {info.engine!r} {_WORK[work]}. Choose another model.", param="model"
        )


_WORK: dict[Work, str] = {
    "messages": "answers no messages",
    "completions": "completes no plain text",
    "embeddings": "gives no embeddings",
    "transcription": "writes down no speech",
}


def refuse_too_many_pictures(request: ChatRequest, info: EngineInfo, config: ModelConfig, everywhere: int) -> None:
    """Raises `UnsupportedFeature` for more pictures than the server, the model's configuration or its engine allows."""
    pictures = request.images
    most = min(limit for limit in (everywhere, config.max_images, info.max_images) if limit is not None)
    if len(pictures) > most:
        raise UnsupportedFeature(
            f"The model {request.model!r} takes at most {most} pictures in a request; {len(pictures)} were sent.",
            param=pictures[most].param,
        )


@lru_cache(maxsize=64)
def smallest_picture(budget: VisionBudget) -> Image:
    """Stands in for a picture where only tokens are counted. Takes no memory: all its pixels are one. The smallest that
    the intake takes: another Sightline may be asked to count it."""
    served = budget.serve(2, 2)
    pixels = np.broadcast_to(np.uint8(0), (served.height, served.width, 3))
    return Image(pixels, digest="", width=2, height=2, media_type="image/png", num_bytes=0)
