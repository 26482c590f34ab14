"""Recordings of voices and speeds that were not trained on, for tests that have no espeak-ng.

    python -m training.whisper.clips OUT_DIR

Writes `clips.json` (what is said in each, and when) and the recordings beside it: Opus in Ogg, a few kilobytes each,
some of them FLAC; one is longer than three windows. Needs PyAV. The same every time, for one version of espeak-ng.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any, Final

import av
import numpy as np

from sightline.audio.mel import SAMPLE_RATE
from sightline.types import Samples
from training.whisper.speech import Scene, Studio
from training.whisper.tokens import WINDOW_S
from training.whisper.words import Language, written

SHORT: Final = 48
LONG_S: Final = 36.0
_SEED: Final = 2026
_FLAC_EVERY: Final = 12
_END_S: Final = 0.4
"""Kept after the last word."""


def make(out: Path) -> None:
    """Raises `OSError` where libespeak-ng is missing."""
    out.mkdir(parents=True, exist_ok=True)
    studio = Studio("held_out", _SEED)
    clips = []
    for index in range(SHORT):
        language: Language = "es" if index % 3 == 2 else "en"
        takes = [studio.take(language, most_words=1 + index % 8) for _ in range(1 + (index % 5 == 4))]
        scene = studio.scene(takes, WINDOW_S)
        while scene.phrases[-1][-1].end > WINDOW_S - 2 * _END_S:
            scene = studio.scene(takes[:1], WINDOW_S)
        clips.append(_keep(out, f"{language}-{index:02d}", scene, "flac" if index % _FLAC_EVERY == 0 else "ogg"))
    scene = studio.scene([studio.take("en") for _ in range(20)], LONG_S)
    whole = tuple(p for p in scene.phrases if p[-1].end < LONG_S - 1.0)
    clips.append(_keep(out, "en-long", Scene(scene.samples, whole, "en"), "ogg"))
    (out / "clips.json").write_text(json.dumps(clips, indent=1, ensure_ascii=False) + "\n")


def _keep(out: Path, name: str, scene: Scene, kind: str) -> dict[str, Any]:
    end = scene.phrases[-1][-1].end + _END_S
    file = f"{name}.{kind}"
    (out / file).write_bytes(encode(scene.samples[: round(end * SAMPLE_RATE)], kind))
    phrases = [
        [{"word": _text(w.word, scene.language), "start": round(w.start, 3), "end": round(w.end, 3)} for w in phrase]
        for phrase in scene.phrases
    ]
    english = " ".join(written(w.word, scene.language, "translate", False) for p in scene.phrases for w in p)
    text = " ".join(w["word"] for p in phrases for w in p)
    return {"file": file, "language": scene.language, "text": text, "english": english, "phrases": phrases}


def _text(word: int, language: Language) -> str:
    return written(word, language, "transcribe", False)


def encode(samples: Samples, kind: str) -> bytes:
    codec, rate = {"ogg": ("libopus", 48_000), "flac": ("flac", SAMPLE_RATE)}[kind]
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        if kind == "ogg":
            stream.bit_rate = 24_000
        resampler = av.AudioResampler(format="flt" if kind == "ogg" else "s16", layout="mono", rate=rate)
        frame = av.AudioFrame.from_ndarray((samples[None] * 32767).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        frame.pts = 0
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
        container.close()
        return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    make(parser.parse_args().out)


if __name__ == "__main__":
    main()
