"""`sightline ask PICTURE... "question"`: an answer in the terminal, streamed, without a server."""

from __future__ import annotations

import argparse
import asyncio
import os
from contextlib import aclosing
from pathlib import Path
from uuid import uuid4

from sightline import logs
from sightline.batch.tasks import SUFFIXES
from sightline.cli.models import add_model_arguments, add_sampling_arguments, to_model_config
from sightline.config import ModelConfig, Settings
from sightline.errors import InvalidRequest
from sightline.items import ChoiceEvent
from sightline.service import Service
from sightline.types import ChatRequest, ImageRef, Message, SamplingParams, Text, TextDelta


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pictures", nargs="*", metavar="PICTURE", help="picture files, in the order the model sees them"
    )
    parser.add_argument("question")
    add_sampling_arguments(parser)
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    logs.set_up("warning", "human")
    model = to_model_config(args)
    sampling = SamplingParams(max_tokens=args.max_tokens, temperature=args.temperature, seed=args.seed)
    asyncio.run(_answer(model, to_chat_request(model.name, args.pictures, args.question, sampling)))
    return 0


def to_chat_request(model: str, pictures: list[str], question: str, sampling: SamplingParams) -> ChatRequest:
    """Raises `InvalidRequest` for a picture file that cannot be read, and for a picture in the question's place."""
    if question.lower().endswith(tuple(SUFFIXES)) and Path(question).is_file():
        raise InvalidRequest(
            f"{question!r} is a picture, and stands where the question belongs. Say what you want to know of it, after "
            'it: sightline ask PICTURE "What is this?"',
            param="question",
        )
    content: tuple[Text | ImageRef, ...] = (*map(_picture, pictures), Text(_in_utf8(question)))
    return ChatRequest(
        request_id=f"ask-{uuid4().hex}", model=model, messages=(Message("user", content),), sampling=sampling
    )


def _in_utf8(argument: str) -> str:
    """Arguments are bytes, which Python reads by the locale; a terminal of today writes UTF-8, whatever LANG says."""
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeError:
        raise InvalidRequest("The question is not text in UTF-8.", param="question") from None


def _picture(name: str) -> ImageRef:
    if name.startswith(("http:", "https:")):
        raise InvalidRequest(f"{name!r} is an address, and pictures are files here: download it first.", param=name)
    try:
        return ImageRef(Path(name).read_bytes(), param=name)
    except OSError as error:
        raise InvalidRequest(f"Cannot read the picture {name!r}: {error.strerror}.", param=name) from None


async def _answer(model: ModelConfig, request: ChatRequest) -> None:
    service = Service(Settings(models=(model,)))
    try:
        await service.start(wait=False)
        async with aclosing(service.generate(request)) as items:
            async for item in items:
                if isinstance(item, ChoiceEvent) and isinstance(item.event, TextDelta):
                    print(item.event.text, end="", flush=True)
        print()
    finally:
        await service.close()
