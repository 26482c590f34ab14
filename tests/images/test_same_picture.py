"""What a person sees is what the model gets: one scene in every form of file gives equal pixels and answers."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest

from sightline.config import Settings
from sightline.items import ChoiceEvent
from sightline.service import Service
from sightline.types import ChatRequest, ImageRef, Message, SamplingParams, Text, TextDelta
from tests.images.gallery import forms, psnr_db
from tests.images.samples import decoded

FORMS = {form.name: form for form in forms()}


@pytest.mark.parametrize("name", FORMS)
def test_the_same_pixels(name: str) -> None:
    form = FORMS[name]
    picture, seen = decoded(form.file)
    assert (picture.width, picture.height) == (224, 168)
    assert psnr_db(seen, form.seen) >= form.least_db


def table() -> dict[str, float]:
    """The least PSNR in dB over the forms of each format and kind of demand."""
    least: defaultdict[str, float] = defaultdict(lambda: 99.0)
    for form in FORMS.values():
        kind = f"{form.name.split()[0]}, at least {form.least_db:.0f} dB"
        least[kind] = min(least[kind], psnr_db(decoded(form.file)[1], form.seen))
    return dict(sorted(least.items()))


def test_the_table_for_the_docs() -> None:
    rows = table()
    print(*(f"{db:5.1f} dB  {kind}" for kind, db in rows.items()), sep="\n")
    assert {kind.split(",")[0] for kind in rows} == {"JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF", "HEIC"}


QUESTIONS = {
    "What colour is the circle?": "red",
    "Where is the circle?": "top left",
    "Which way does the arrow point?": "left",
}


async def ask(service: Service, file: bytes, question: str) -> str:
    content = (ImageRef(file, "picture"), Text(question))
    sampling = SamplingParams(max_tokens=8, temperature=0.0)
    request = ChatRequest(
        request_id="same-picture", model="peek", messages=(Message[ImageRef]("user", content),), sampling=sampling
    )
    return "".join(
        [
            item.event.text
            async for item in service.generate(request)
            if isinstance(item, ChoiceEvent) and isinstance(item.event, TextDelta)
        ]
    )


@pytest.mark.anyio
async def test_the_same_answers() -> None:
    """From the model that ships, through the whole service; colours are not asked of grey forms."""
    service = Service(Settings())
    await service.start()
    try:
        for question, expected in QUESTIONS.items():
            asked = [form for form in FORMS.values() if not (form.is_grey and "colour" in question)]
            answers = await asyncio.gather(*(ask(service, form.file, question) for form in asked))
            others = {form.name: answer for form, answer in zip(asked, answers, strict=True) if answer != expected}
            assert not others, question
    finally:
        await service.close()
