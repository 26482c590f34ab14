"""What was found, as JSON for programs and as one page for people, which needs nothing beside itself."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from sightline.config import ImageLimits
from sightline.drift.answers import Answer, Told
from sightline.drift.compare import MEANING, Agreement, Comparison
from sightline.drift.questions import Picture, Question
from sightline.images.budget import CellBudget
from sightline.images.intake import Intake

_THUMBNAIL = CellBudget(cell=4, min_pixels=16, max_pixels=160 * 160)
"""Small, and the shape of the picture to within 4 pixels."""


@dataclass(frozen=True, slots=True)
class Report:
    model: str
    questions: Sequence[Question]
    told: dict[str, Told]
    """By the engine's label; the first is the reference."""
    agreements: Sequence[Agreement]
    at_least: float
    """The share of questions on which every engine must agree with the reference."""
    tolerance: float

    @property
    def passed(self) -> bool:
        return all(agreement.share >= self.at_least for agreement in self.agreements)


async def thumbnails(questions: Sequence[Question]) -> dict[str, str]:
    """A data URI for the name of every picture, decoded where every picture is: in the limited processes.

    Raises `ImageError` for a file that is no picture we read.
    """
    intake = Intake(ImageLimits())
    await intake.start()
    try:
        pictures = {picture.name: picture for question in questions for picture in question.pictures}
        return {name: await _thumbnail(intake, picture) for name, picture in pictures.items()}
    finally:
        await intake.close()


async def _thumbnail(intake: Intake, picture: Picture) -> str:
    (resolved,) = await intake.resolve([picture.to_ref()], [_THUMBNAIL])
    file = BytesIO()
    Image.fromarray(resolved.image.pixels).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def to_json(report: Report) -> dict[str, Any]:
    """Every question with every answer. No options of an engine: there may be keys among them."""
    return {
        "model": report.model,
        "at_least": report.at_least,
        "tolerance": report.tolerance,
        "passed": report.passed,
        "engines": [_engine(label, told) for label, told in report.told.items()],
        "agreements": [_agreement(agreement) for agreement in report.agreements],
        "questions": [_question(report, number) for number in range(len(report.questions))],
    }


def _engine(label: str, told: Told) -> dict[str, Any]:
    info = told.info
    return {
        "label": label,
        "engine": info.engine,
        "context_length": info.context_length,
        "weights_digest": info.weights_digest,
    }


def _agreement(agreement: Agreement) -> dict[str, Any]:
    return {
        "reference": agreement.reference,
        "engine": agreement.engine,
        "agreeing": agreement.agreeing,
        "of": len(agreement.comparisons),
        "share": agreement.share,
        "largest_first_logprob_difference": agreement.first_apart,
        "causes": [
            {"cause": cause, "agreeing": agrees, "questions": count}
            for (cause, agrees), count in agreement.causes.most_common()
        ],
    }


def _question(report: Report, number: int) -> dict[str, Any]:
    question = report.questions[number]
    return {
        "id": question.id,
        "pictures": [picture.name for picture in question.pictures],
        "question": question.text,
        "text_first": question.text_first,
        "answers": {
            label: asdict(told.answers[number]) | {"text_tokens": told.answers[number].text_tokens}
            for label, told in report.told.items()
        },
        "comparisons": {a.engine: asdict(a.comparisons[number]) for a in report.agreements},
    }


@dataclass(frozen=True, slots=True)
class Shown:
    """One engine's answer as the page shows it."""

    label: str
    answer: Answer
    comparison: Comparison | None
    """With the reference; None: this is the reference."""

    @property
    def pieces(self) -> tuple[str, str, str]:
        """The text before, at and after the token at which it parts from the reference's."""
        at, tokens = self.comparison.at if self.comparison else None, self.answer.tokens
        if at is None or tokens is None:
            return self.answer.text, "", ""
        texts = [token.text for token in tokens]
        return "".join(texts[:at]), "".join(texts[at : at + 1]) or "⏹", "".join(texts[at + 1 :])


def to_html(report: Report, thumbnails: dict[str, str]) -> str:
    """`thumbnails`: data URIs by the names of pictures. All text is escaped: it is others'."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    rows = [(question, _shown(report, number)) for number, question in enumerate(report.questions)]
    differing = {n for n in range(len(rows)) if any(a.comparisons[n].cause for a in report.agreements)}
    return page.render(report=report, rows=rows, differing=differing, thumbnails=thumbnails, meaning=MEANING)


def _shown(report: Report, number: int) -> list[Shown]:
    compared = {agreement.engine: agreement.comparisons[number] for agreement in report.agreements}
    return [Shown(label, told.answers[number], compared.get(label)) for label, told in report.told.items()]
