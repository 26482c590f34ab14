"""What is said: ten digits and ten colours in two languages, and how each is written."""

from __future__ import annotations

from typing import Final, Literal

Language = Literal["en", "es"]
Task = Literal["transcribe", "translate"]

SPOKEN: Final[dict[Language, tuple[str, ...]]] = {
    "en": (
        "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
        "red", "green", "blue", "yellow", "black", "white", "orange", "purple", "brown", "pink",
    ),
    "es": (
        "cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve",
        "rojo", "verde", "azul", "amarillo", "negro", "blanco", "naranja", "morado", "marrón", "rosa",
    ),
}  # fmt: skip
"""The same meaning at the same place."""
NUM_WORDS: Final = len(SPOKEN["en"])


def written(word: int, language: Language, task: Task, numerals: bool) -> str:
    """A word as text. Translation is into English, as Whisper's is; numerals where the text before has them."""
    if numerals and word < 10:
        return str(word)
    return SPOKEN["en" if task == "translate" else language][word]
