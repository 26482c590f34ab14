"""What is asked: pictures from a directory and questions from a file, or drawn ones (drawing.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sightline.errors import InvalidRequest
from sightline.types import ChatRequest, ImageRef, Message, SamplingParams, Text

DEFAULT_QUESTIONS = ("Describe what you see.", "What colour is the background?", "How many things are there?")
"""Asked of a directory's pictures when no file of questions is given."""

_ALTERNATIVES = 2
"""Beside the chosen token. One would do, but for servers that count the chosen token among them."""


@dataclass(frozen=True, slots=True)
class Picture:
    name: str
    source: bytes | Path
    """The file's content, or where it is: a directory of photographs need not fit into memory."""

    def to_ref(self) -> ImageRef:
        """Raises `InvalidRequest` for a file that cannot be read."""
        try:
            content = self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        except OSError as error:
            raise InvalidRequest(
                f"Cannot read the picture {self.name!r}: {error.strerror}.", param="pictures"
            ) from None
        return ImageRef(content, param=self.name)


@dataclass(frozen=True, slots=True)
class Question:
    id: str
    pictures: tuple[Picture, ...]
    text: str
    text_first: bool = False
    """Whether the text stands before the pictures: templates differ in what they do about that."""

    def to_request(self, model: str, *, max_tokens: int, logprobs: bool) -> ChatRequest:
        """Greedy; with `logprobs`, each token is told with its log-probability and its runners-up."""
        pictures = tuple(picture.to_ref() for picture in self.pictures)
        text = Text(self.text)
        content: tuple[Text | ImageRef, ...] = (text, *pictures) if self.text_first else (*pictures, text)
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, logprobs=_ALTERNATIVES if logprobs else None)
        return ChatRequest(f"drift-{self.id}", model, (Message("user", content),), sampling)


def each_of_each(pictures: Sequence[Picture], texts: Sequence[str]) -> list[Question]:
    """Every question of every picture, each of which is shown alone."""
    return [
        Question(f"{number:04}-{index}", (picture,), text)
        for number, picture in enumerate(pictures)
        for index, text in enumerate(texts)
    ]


def read_pictures(directory: Path) -> list[Picture]:
    """The files of a directory by name, hidden ones and subdirectories left out; nothing is decoded here.

    Raises `InvalidRequest` for a directory that cannot be read or that holds no file.
    """
    try:
        paths = sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise InvalidRequest(f"Cannot read the pictures in {str(directory)!r}: {error.strerror}.") from None
    if not paths:
        raise InvalidRequest(f"There are no pictures in {str(directory)!r}. Put picture files there, side by side.")
    return [Picture(path.name, path) for path in paths]


def read_texts(file: Path) -> list[str]:
    """The questions of a UTF-8 text file, one a line; empty lines are left out.

    Raises `InvalidRequest` for a file that cannot be read or that asks nothing.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"Cannot read the questions in {str(file)!r}: {error}.") from None
    if not any(lines):
        raise InvalidRequest(f"There are no questions in {str(file)!r}. Write one a line.")
    return [line for line in lines if line]
