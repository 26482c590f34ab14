"""What the tiny Whisper is taught, as far as that needs neither torch nor espeak-ng."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from sightline.audio.mel import SAMPLE_RATE
from training.whisper import tokens
from training.whisper.edits import edits
from training.whisper.lessons import Lesson, Teacher
from training.whisper.speech import ACCENTS, SPEEDS, VARIANTS, Scene, Word
from training.whisper.words import NUM_WORDS, SPOKEN, written

FIXTURE = Path(__file__).parents[1] / "engines" / "whisper" / "model"
TOKENIZER = tokens.build()


class Chosen(random.Random):
    """Its draws are the ones that are given, and 0.99 when they are used up."""

    def __init__(self, *draws: float) -> None:
        super().__init__(1)
        self.draws = list(draws)

    def random(self) -> float:
        return self.draws.pop(0) if self.draws else 0.99


def taught(scene: Scene, *draws: float, with_times: bool = True) -> Lesson:
    teacher = Teacher(TOKENIZER, None, 80, 1)  # type: ignore[arg-type]  # scenes are given, not made
    teacher._random = Chosen(*draws)
    return teacher.of(scene, 10.0, with_times=with_times)


def phrase(start: float, *words: int) -> tuple[Word, ...]:
    """A word every half a second, four tenths long."""
    return tuple(Word(word, start + 0.5 * i, start + 0.5 * i + 0.4) for i, word in enumerate(words))


def scene(*phrases: tuple[Word, ...], language: str = "es") -> Scene:
    noise = np.random.default_rng(1).normal(0, 0.1, 10 * SAMPLE_RATE).astype(np.float32)
    return Scene(noise, phrases, language)  # type: ignore[arg-type]


def spelled(lesson: Lesson) -> str:
    return TOKENIZER.decode(lesson.tokens, skip_special_tokens=False)


def test_the_fixtures_tokenizer_is_the_one_that_is_built() -> None:
    assert json.loads(TOKENIZER.to_str()) == json.loads((FIXTURE / "tokenizer.json").read_text())


def test_both_languages_mean_the_same_at_the_same_place() -> None:
    assert len(SPOKEN["es"]) == len(SPOKEN["en"]) == NUM_WORDS == len(set(SPOKEN["es"])) == len(set(SPOKEN["en"]))
    assert written(3, "es", "transcribe", False) == "tres"
    assert written(3, "es", "translate", False) == "three"
    assert written(3, "es", "translate", True) == "3"
    assert written(10, "es", "transcribe", True) == "rojo"


def test_no_voice_and_no_speed_of_the_measured_split_is_trained_on() -> None:
    assert not set(VARIANTS["train"]) & set(VARIANTS["held_out"])
    trained = {speed for speeds in SPEEDS["train"] for speed in speeds}
    assert not trained & {speed for speeds in SPEEDS["held_out"] for speed in speeds}
    assert "en-us-nyc" not in ACCENTS["train"]["en"]


def test_a_transcript_has_the_times_of_its_phrases() -> None:
    lesson = taught(scene(phrase(1.0, 1, 14), phrase(4.0, 18)))
    assert spelled(lesson) == (
        "<|startoftranscript|><|es|><|transcribe|><|1.00|> uno negro<|1.90|><|4.00|> marrón<|4.40|><|endoftext|>"
    )
    assert lesson.asked_from == 0
    assert lesson.not_asked == {2}, "the task is the user's choice"


def test_a_phrase_that_the_window_cuts_is_told_by_its_start() -> None:
    cut = scene(phrase(1.0, 1), phrase(9.0, 2, 3, 4))
    assert spelled(taught(cut)).endswith(" uno<|1.40|><|9.00|><|endoftext|>")
    plain = taught(cut, with_times=False)
    assert spelled(plain).endswith("<|notimestamps|> uno<|endoftext|>")
    quiet, loud = plain.mel[:, 960:].mean(), plain.mel[:, 300:800].mean()
    assert quiet < loud - 0.5, "and is not heard where it cannot be told"


def test_translation_and_numerals_are_asked_for_by_what_comes_before() -> None:
    lesson = taught(scene(phrase(1.0, 1, 14)), 0.1, 0.1, 0.1)  # translated, with a prompt, of numerals
    before, _, after = spelled(lesson).partition("<|startoftranscript|>")
    assert before.startswith("<|startofprev|> ")
    assert all(word.isdigit() for word in before.split()[1:])
    assert after == "<|es|><|translate|><|1.00|> 1 black<|1.90|><|endoftext|>"
    assert lesson.tokens[lesson.asked_from] == TOKENIZER.token_to_id("<|startoftranscript|>")


def test_frames_and_places_are_where_the_words_are() -> None:
    lesson = taught(scene(phrase(1.0, 1, 14)))
    assert lesson.frames[[49, 51, 69, 71, 76, 96]].tolist() == [0, 22, 22, 0, 35, 0]
    told = {TOKENIZER.decode([t]): p for t, p in zip(lesson.tokens, lesson.places, strict=True) if p is not None}
    first = TOKENIZER.decode([TOKENIZER.encode(" uno").ids[0]])
    assert told[first] == (50, 70)
    assert told["<|1.00|>"] == (46, 53)
    assert lesson.places[:3] == (None, None, None)
    assert lesson.places[-1] is None


@pytest.mark.parametrize(
    ("said", "heard", "count"),
    [("a b c", "a b c", 0), ("a b c", "a c", 1), ("a", "b a c", 2), ("", "a", 1), ("a", "", 1)],
)
def test_edits_are_words_put_in_left_out_or_exchanged(said: str, heard: str, count: int) -> None:
    assert edits(said.split(), heard.split()) == count
