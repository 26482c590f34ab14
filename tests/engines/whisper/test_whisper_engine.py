"""A trained Whisper on OpenVINO, in its own process and behind the API: what is said in recordings, and when."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from sightline.audio.decoder_process import decode
from sightline.config import AudioLimits, ImageLimits, ModelConfig, Settings
from sightline.engines import Transcribes, load_engine, open_engine
from sightline.engines.whisper.engine import OpenVINOWhisperEngine
from sightline.engines.worker import WorkerEngine
from sightline.errors import EngineError, InvalidRequest, UnsupportedFeature
from sightline.types import (
    EngineRequest,
    Message,
    Samples,
    Segment,
    Text,
    Transcribed,
    TranscriptionEvent,
    TranscriptionRequest,
)
from tests.api.serving import server_of
from training.whisper.edits import edits
from training.whisper.measure import CLIPS, measure
from training.whisper.words import SPOKEN

pytestmark = pytest.mark.anyio

HERE = Path(__file__).parent
MOST_WRONG = 0.2
"""Of words. The model is small and was trained for minutes; `docs/audio.md` has its figures."""
CONFIG = ModelConfig(name="w", engine="openvino", source=str(HERE / "model"), options={"num_threads": 2})
ALL: dict[str, dict[str, Any]] = {clip["file"]: clip for clip in json.loads((CLIPS / "clips.json").read_text())}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def engine() -> AsyncIterator[WorkerEngine]:
    engine = open_engine(CONFIG)
    assert isinstance(engine, WorkerEngine)
    await engine.start()
    yield engine
    await engine.close()


def samples(file: str) -> Samples:
    out = io.BytesIO()
    decode(io.BytesIO((CLIPS / file).read_bytes()), out, AudioLimits())
    return np.frombuffer(out.getvalue(), np.float32)


def request(sound: Samples, **fields: Any) -> TranscriptionRequest:
    return TranscriptionRequest(request_id="r", model="w", samples=sound, **fields)


async def heard(engine: Transcribes, wanted: TranscriptionRequest) -> tuple[str, list[Segment], str]:
    events: list[TranscriptionEvent] = [event async for event in engine.transcribe(wanted)]
    segments = [event for event in events if isinstance(event, Segment)]
    end = events[-1]
    assert isinstance(end, Transcribed)
    return "".join(s.text for s in segments).strip(), segments, end.language


def wrong(clips: list[dict[str, Any]], texts: list[str], key: str = "text") -> float:
    said = [clip[key].split() for clip in clips]
    return sum(edits(s, t.split()) for s, t in zip(said, texts, strict=True)) / sum(map(len, said))


async def test_it_says_what_it_does(engine: WorkerEngine) -> None:
    assert engine.info.work == {"transcription"}
    assert (engine.info.engine, engine.info.context_length, engine.info.vision) == ("openvino", 128, None)


async def test_recordings_beside_each_other_are_each_heard(engine: WorkerEngine) -> None:
    clips = [ALL[file] for file in list(ALL)[:12]]
    answers = await asyncio.gather(*(heard(engine, request(samples(clip["file"]))) for clip in clips))
    assert wrong(clips, [text for text, _, _ in answers]) <= MOST_WRONG
    assert sum(language == clip["language"] for (_, _, language), clip in zip(answers, clips, strict=True)) >= 11


async def test_a_recording_of_several_windows_is_heard_to_its_end(engine: WorkerEngine) -> None:
    clip = ALL["en-long.ogg"]
    text, segments, _ = await heard(engine, request(samples(clip["file"]), word_times=True))
    assert len(set(text.split()) & set(clip["text"].split())) >= 10
    assert segments[-1].end > 30.0
    assert len({s.seek for s in segments}) > 3
    assert [s.start for s in segments] == sorted(s.start for s in segments)
    assert all(s.start < s.end for s in segments)
    assert " ".join(w.text.strip() for s in segments for w in s.words) == text


async def test_spanish_is_translated(engine: WorkerEngine) -> None:
    clips = [clip for clip in ALL.values() if clip["language"] == "es"][:6]
    texts = [(await heard(engine, request(samples(c["file"]), task="translate")))[0] for c in clips]
    assert {word for text in texts for word in text.split()} <= {*SPOKEN["en"]}
    assert wrong(clips, texts, "english") <= 0.6


async def test_a_prompt_of_numerals_has_numbers_written_as_numerals(engine: WorkerEngine) -> None:
    clip = next(c for c in ALL.values() if c["text"].split()[0] in ("one", "two", "three", "seven", "nine"))
    plain, _, _ = await heard(engine, request(samples(clip["file"])))
    styled, _, _ = await heard(engine, request(samples(clip["file"]), prompt="3 5 8 1 9 2"))
    assert not any(c.isdigit() for c in plain)
    assert any(c.isdigit() for c in styled)


async def test_silence_and_noise_are_nothing(engine: WorkerEngine) -> None:
    quiet = np.zeros(48_000, np.float32)
    hiss = np.random.default_rng(4).normal(0, 0.003, 48_000).astype(np.float32)
    for sound in (quiet, hiss):
        assert (await heard(engine, request(sound)))[0] == ""


async def test_who_leaves_frees_the_model_for_others(engine: WorkerEngine) -> None:
    async with aclosing(engine.transcribe(request(np.tile(samples("en-long.ogg"), 8)))) as events:
        async for event in events:
            assert isinstance(event, Segment)
            break
    async with asyncio.timeout(30):  # the rest of the recording would take longer
        assert (await heard(engine, request(samples("en-00.flac"))))[0]


async def test_what_the_model_cannot_do_is_refused(engine: WorkerEngine) -> None:
    with pytest.raises(InvalidRequest, match=r"language german. It knows en \(english\), es \(spanish\)") as caught:
        await heard(engine, request(np.zeros(16_000, np.float32), language="de"))
    assert caught.value.param == "language"
    chat = EngineRequest("r", "w", (Message("user", (Text("hi"),)),))
    with pytest.raises(UnsupportedFeature, match="writes down speech"):
        await engine.count_tokens(chat)
    with pytest.raises(UnsupportedFeature, match="writes down speech"):
        async for _ in engine.generate(chat):
            pass


async def test_options_that_mean_nothing_for_speech_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="kv_cache_mib"):
        load_engine(replace_options(kv_cache_mib=3))
    assert isinstance(load_engine(CONFIG), OpenVINOWhisperEngine)


def replace_options(**options: Any) -> ModelConfig:
    return ModelConfig(name="w", engine="openvino", source=CONFIG.source, options=options)


async def test_a_process_that_dies_fails_its_request_and_comes_back() -> None:
    engine = open_engine(CONFIG)
    assert isinstance(engine, WorkerEngine)
    await engine.start()
    try:
        with pytest.raises(EngineError):
            async for _ in engine.transcribe(request(np.tile(samples("en-long.ogg"), 4))):
                if engine.pid is not None:
                    os.kill(engine.pid, signal.SIGKILL)
        assert (await heard(engine, request(samples("en-00.flac"))))[0]
    finally:
        await engine.close()


# --- with OpenAI's SDK -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    settings = Settings(models=(CONFIG,), images=ImageLimits(decoders=1))
    with server_of(settings) as port:
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)


def test_voices_and_speeds_that_were_not_trained_on_are_understood(client: openai.OpenAI) -> None:
    measured = measure(client, "w", most=20)
    assert measured.clips == 20
    assert measured.word_error_rate <= MOST_WRONG, measured.summary()
    assert measured.languages_right >= 18


def test_the_sdk_streams(client: openai.OpenAI) -> None:
    file = ("long.ogg", (CLIPS / "en-long.ogg").read_bytes())
    events = list(client.audio.transcriptions.create(model="w", file=file, stream=True))
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert len(deltas) > 3
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == "".join(deltas)


def test_the_sdk_s_errors_are_ours(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="by its first bytes") as caught:
        client.audio.transcriptions.create(model="w", file=("a.wav", b"no recording"))
    assert (caught.value.param, caught.value.code) == ("file", "invalid_audio_format")
    with pytest.raises(openai.BadRequestError, match="answers no messages"):
        client.chat.completions.create(model="w", messages=[{"role": "user", "content": "hi"}])
