"""How well and how fast a served speech model hears the clips, asked through the API.

    sightline serve ...        # or any other server of these endpoints
    python -m training.whisper.measure --url http://127.0.0.1:8000/v1 --model whisper [--clips DIR]

Prints word error rates (words put in, left out or exchanged, by words said), the share of languages that were found
out, how far the starts of words and the ends of segments are off, and seconds of sound a second. Needs the package
`openai`, no torch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import openai

from training.whisper.edits import edits

CLIPS: Final = Path(__file__).parents[2] / "tests" / "engines" / "whisper" / "clips"
_LONG_S: Final = 30.0
_NAMES: Final = {"en": "english", "es": "spanish"}


@dataclass(slots=True)
class Count:
    wrong: int = 0
    said: int = 0

    def add(self, said: str, heard: str) -> None:
        self.wrong += edits(said.split(), heard.split())
        self.said += len(said.split())

    @property
    def rate(self) -> float:
        return self.wrong / max(1, self.said)


@dataclass(slots=True)
class Measured:
    clips: int = 0
    words: dict[str, Count] = field(default_factory=dict)
    """By language; `long` for recordings of several windows, `translated` for Spanish into English."""
    languages_right: int = 0
    starts_off_s: list[float] = field(default_factory=list)
    """Of words in clips that were heard without a mistake."""
    audio_s: float = 0.0
    took_s: float = 0.0

    def count(self, kind: str) -> Count:
        return self.words.setdefault(kind, Count())

    @property
    def word_error_rate(self) -> float:
        """Of everything that was transcribed."""
        counts = [count for kind, count in self.words.items() if kind != "translated"]
        return sum(c.wrong for c in counts) / max(1, sum(c.said for c in counts))

    def summary(self) -> dict[str, Any]:
        return {
            "clips": self.clips,
            "words": sum(c.said for kind, c in self.words.items() if kind != "translated"),
            "word_error_rate": round(self.word_error_rate, 4),
            **{f"word_error_rate_{kind}": round(c.rate, 4) for kind, c in sorted(self.words.items())},
            "languages_right": round(self.languages_right / max(1, self.clips), 4),
            "word_starts_off_s": round(statistics.median(self.starts_off_s), 3) if self.starts_off_s else None,
            "audio_s_per_s": round(self.audio_s / self.took_s, 2) if self.took_s else None,
        }


def measure(client: openai.OpenAI, model: str, clips: Path = CLIPS, most: int | None = None) -> Measured:
    """`most`: of the clips, so many from the first on."""
    measured = Measured()
    for clip in json.loads((clips / "clips.json").read_text())[:most]:
        _one(client, model, clip, (clips / clip["file"]).read_bytes(), measured)
    return measured


def _one(client: openai.OpenAI, model: str, clip: dict[str, Any], file: bytes, measured: Measured) -> None:
    began = time.perf_counter()
    heard = client.audio.transcriptions.create(
        model=model,
        file=(clip["file"], file),
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    measured.took_s += time.perf_counter() - began
    measured.audio_s += heard.duration
    measured.clips += 1
    kind = "long" if heard.duration > _LONG_S else clip["language"]
    measured.count(kind).add(clip["text"], heard.text)
    measured.languages_right += heard.language == _NAMES[clip["language"]]
    if heard.text == clip["text"]:
        true = [word["start"] for phrase in clip["phrases"] for word in phrase]
        found = [word.start for word in heard.words or []]
        measured.starts_off_s += [abs(a - b) for a, b in zip(true, found, strict=False)]
    if clip["language"] != "en":
        translated = client.audio.translations.create(model=model, file=(clip["file"], file))
        measured.count("translated").add(clip["english"], translated.text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", required=True)
    parser.add_argument("--clips", type=Path, default=CLIPS)
    parser.add_argument("--key", default="none")
    arguments = parser.parse_args()
    client = openai.OpenAI(base_url=arguments.url, api_key=arguments.key, max_retries=0, timeout=600)
    print(json.dumps(measure(client, arguments.model, arguments.clips).summary(), indent=1))


if __name__ == "__main__":
    main()
