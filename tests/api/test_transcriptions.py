"""/v1/audio: what a client sends and gets, in every format, and what is refused. The engine hears tones, not words."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.types import ASGIApp

from sightline import metrics
from sightline.api.app import create_app
from sightline.api.transcriptions.reply import Deltas, to_srt, to_transcript, to_vtt
from sightline.audio.decoder import AudioDecoder
from sightline.audio.decoder_process import decode
from sightline.config import AudioLimits, HttpLimits, ImageLimits, ModelConfig, Settings
from sightline.engines import load_engine
from sightline.errors import EngineFailed, EngineUnavailable
from sightline.service import Service
from sightline.speech import Listening
from sightline.types import Samples, Segment, Transcribed
from tests.api.standin import Call, Reply
from tests.audio.listener import Listener
from tests.audio.recordings import encoded, tone

pytestmark = pytest.mark.anyio

LOW_HIGH = encoded(np.concatenate([tone(1.0, 300), tone(0.5, 1200)]), "flac")
SETTINGS = Settings(
    models=(ModelConfig(name="w", engine="fake"), ModelConfig(name="chat", engine="fake")),
    audio=AudioLimits(max_s=30, max_bytes=200_000, decoders=1),
    images=ImageLimits(decoders=1),
    http=HttpLimits(max_body_bytes=1_000_000),
)


class Decoder(AudioDecoder):
    async def _take(self) -> Any:
        return _Here(self._limits)


class _Here:
    def __init__(self, limits: AudioLimits) -> None:
        self._limits = limits

    async def decode(self, file: bytes) -> Samples:
        out = io.BytesIO()
        decode(io.BytesIO(file), out, self._limits)
        return np.frombuffer(out.getvalue(), np.float32)

    async def end(self) -> int:
        return 0


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def served() -> AsyncIterator[tuple[ASGIApp, Listener]]:
    """One for all. Recordings are decoded in this process: others take time to start, and have their own tests."""
    listener = Listener()
    service = Service(SETTINGS, engines={"w": listener, "chat": load_engine(SETTINGS.models[1])})
    service._audio = Decoder(SETTINGS.audio)
    await service.start()
    yield create_app(service, SETTINGS), listener
    await service.close()


@pytest.fixture
def listener(served: tuple[ASGIApp, Listener]) -> Listener:
    listener = served[1]
    listener.requests.clear()
    listener.hook = lambda index: None
    return listener


@pytest.fixture
def app(served: tuple[ASGIApp, Listener], listener: Listener) -> ASGIApp:
    return served[0]


def call(path: str = "transcriptions", file: bytes | None = LOW_HIGH, **fields: Any) -> Call:
    data = {"model": "w", **fields}
    files = {"file": ("speech.flac", file)} if file is not None else {"other": b"x"}
    request = httpx.Request("POST", "http://localhost:8000/", data=data, files=files)
    headers = {"host": "localhost:8000", "content-type": request.headers["content-type"]}
    return Call("POST", f"/v1/audio/{path}", request.read(), headers)


async def asked(app: ASGIApp, path: str = "transcriptions", file: bytes | None = LOW_HIGH, **fields: Any) -> Reply:
    return await call(path, file, **fields).run(app)


async def test_json_has_the_text_and_the_duration(app: ASGIApp) -> None:
    reply = await asked(app)
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert reply.json == {"text": "low high", "usage": {"type": "duration", "seconds": 1.5}}
    assert reply.headers["x-sightline-engine"] == "listener"


async def test_seconds_are_counted(app: ASGIApp) -> None:
    before = metrics.AUDIO_SECONDS.labels("w")._value.get()
    await asked(app)
    assert metrics.AUDIO_SECONDS.labels("w")._value.get() - before == 1.5


async def test_verbose_json_has_segments_and_words(app: ASGIApp) -> None:
    reply = await asked(app, response_format="verbose_json", **{"timestamp_granularities[]": ["word", "segment"]})
    assert reply.json["task"] == "transcribe"
    assert (reply.json["language"], reply.json["duration"], reply.json["text"]) == ("spanish", 1.5, "low high")
    assert reply.json["segments"][1] == {
        "id": 1, "seek": 0, "start": 1.0, "end": 1.5, "text": " high", "tokens": [1], "temperature": 0.0,
        "avg_logprob": -0.25, "compression_ratio": 0.5, "no_speech_prob": 0.125,
    }  # fmt: skip
    assert reply.json["words"] == [
        {"word": "low", "start": 0.0, "end": 1.0}, {"word": "high", "start": 1.0, "end": 1.5},
    ]  # fmt: skip


@pytest.mark.parametrize(("asked_for", "has"), [("word", {"words"}), ("segment", {"segments"}), (None, {"segments"})])
async def test_only_the_granularities_that_were_asked_for(
    app: ASGIApp, listener: Listener, asked_for: str | None, has: set[str]
) -> None:
    fields = {"timestamp_granularities[]": asked_for} if asked_for else {}
    reply = await asked(app, response_format="verbose_json", **fields)
    assert {"words", "segments"} & reply.json.keys() == has
    assert listener.requests[0].word_times == (asked_for == "word")


async def test_text_and_subtitles(app: ASGIApp) -> None:
    text = await asked(app, response_format="text")
    assert (text.body, text.headers["content-type"]) == (b"low high\n", "text/plain; charset=utf-8")
    srt = await asked(app, response_format="srt")
    assert srt.body.decode() == (
        "1\n00:00:00,000 --> 00:00:01,000\nlow\n\n2\n00:00:01,000 --> 00:00:01,500\nhigh\n\n"
    )  # fmt: skip
    vtt = await asked(app, response_format="vtt")
    assert vtt.headers["content-type"] == "text/vtt; charset=utf-8"
    assert vtt.body.decode().startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nlow\n\n")


async def test_a_stream_is_deltas_and_then_the_whole(app: ASGIApp) -> None:
    reply = await asked(app, stream="true")
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.events == [
        {"type": "transcript.text.delta", "delta": "low"},
        {"type": "transcript.text.delta", "delta": " high"},
        {"type": "transcript.text.done", "text": "low high", "usage": {"type": "duration", "seconds": 1.5}},
    ]


async def test_logprobs_are_included_where_they_are_asked_for(app: ASGIApp) -> None:
    whole = [{"token": " low", "logprob": -0.5, "bytes": list(b" low")}]
    reply = await asked(app, **{"include[]": "logprobs"})
    assert reply.json["logprobs"][:1] == whole
    streamed = await asked(app, stream="true", **{"include[]": "logprobs"})
    assert streamed.events[0]["logprobs"] == whole
    assert streamed.events[-1]["logprobs"] == reply.json["logprobs"]


async def test_what_a_client_asks_for_reaches_the_engine(app: ASGIApp, listener: Listener) -> None:
    await asked(app, language="English", prompt="Names: Ada.", temperature="0.5", chunking_strategy="auto")
    request = listener.requests[0]
    assert (request.language, request.prompt, request.temperature, request.task) == (
        "en", "Names: Ada.", 0.5, "transcribe",
    )  # fmt: skip
    assert len(request.samples) == 24_000


async def test_translations_are_into_english(app: ASGIApp, listener: Listener) -> None:
    assert (await asked(app, "translations")).json == {"text": "low high"}
    verbose = await asked(app, "translations", response_format="verbose_json")
    assert (verbose.json["task"], verbose.json["language"]) == ("translate", "english")
    assert [r.task for r in listener.requests] == ["translate", "translate"]


REFUSED: list[tuple[str, dict[str, Any], int, str | None, str]] = [
    ("no file", {"file": None}, 400, "file", "Missing"),
    ("no model", {"model": ""}, 400, "model", "empty"),
    ("unknown model", {"model": "x"}, 404, "model", "does not exist"),
    ("a model that chats", {"model": "chat"}, 400, "model", "writes down no speech"),
    ("unknown language", {"language": "klingon"}, 400, "language", "ISO 639-1"),
    ("format", {"response_format": "docx"}, 400, "response_format", "srt"),
    ("temperature", {"temperature": "1.5"}, 400, "temperature", "between 0 and 1"),
    ("temperature text", {"temperature": "hot"}, 400, "temperature", "a number"),
    ("words without verbose", {"timestamp_granularities[]": "word"}, 400, "timestamp_granularities", "verbose_json"),
    ("unknown granularity", {"response_format": "verbose_json", "timestamp_granularities[]": "letter"}, 400,
     "timestamp_granularities[0]", "'word'"),
    ("stream of subtitles", {"stream": "true", "response_format": "srt"}, 400, "stream", "'json' or 'text'"),
    ("unknown include", {"include[]": "items"}, 400, "include[0]", "logprobs"),
    ("logprobs of subtitles", {"include[]": "logprobs", "response_format": "srt"}, 400, "include", "'json'"),
    ("speech detection", {"chunking_strategy": '{"type":"server_vad"}'}, 400, "chunking_strategy", "auto"),
    ("speakers", {"known_speaker_names[]": "Ada"}, 400, "known_speaker_names", "told apart"),
    ("no recording", {"file": b"hello"}, 400, "file", "flac, mp3"),
    ("empty", {"file": b""}, 400, "file", "no content"),
    ("cut", {"file": LOW_HIGH[: len(LOW_HIGH) // 2]}, 400, "file", "truncated"),
    ("too many bytes", {"file": bytes(200_001)}, 400, "file", "200001 bytes"),
    ("too large a body", {"file": bytes(1_000_001)}, 413, None, "1000000 bytes"),
    ("too long", {"file": encoded(np.zeros(31 * 16_000, np.float32), "flac")}, 400, "file", "30 s"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "status", "param", "says"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
async def test_refused(app: ASGIApp, fields: dict[str, Any], status: int, param: str | None, says: str) -> None:
    reply = await asked(app, **fields)
    error = reply.json["error"]
    assert (reply.status, error["type"], error["param"]) == (status, "invalid_request_error", param)
    assert says in error["message"]


async def test_json_is_no_form(app: ASGIApp) -> None:
    reply = await Call("POST", "/v1/audio/transcriptions", b"{}").run(app)
    assert reply.status == 415


async def test_an_engine_that_breaks_before_it_said_anything_is_asked_once_more(
    app: ASGIApp, listener: Listener
) -> None:
    def fail_once(index: int) -> None:
        if len(listener.requests) == 1:
            raise EngineUnavailable("It died.")

    listener.hook = fail_once
    assert (await asked(app)).json["text"] == "low high"
    assert len(listener.requests) == 2


async def test_one_that_breaks_later_is_an_event_and_is_not_asked_again(app: ASGIApp, listener: Listener) -> None:
    def fail(index: int) -> None:
        if index:
            raise EngineFailed("It broke.")

    listener.hook = fail
    reply = await asked(app, stream="true")
    assert reply.events[0]["delta"] == "low"
    assert reply.events[1]["error"]["message"] == "It broke."
    assert len(reply.events) == 2
    assert (await asked(app)).status == 500
    assert len(listener.requests) == 2


async def test_a_client_that_leaves_ends_the_work(app: ASGIApp, listener: Listener) -> None:
    leaving = call(stream="true")
    listener.hook = lambda index: leaving.left.set() if index else None
    await leaving.run(app)
    while listener.open:
        await asyncio.sleep(0)
    assert not leaving.reply.complete


# --- pure ------------------------------------------------------------------------------------------------------------


def segment(text: str, start: float = 0.0, end: float = 1.0) -> Segment:
    return Segment(start, end, text, (), 0.0, 0.0, 1.0, 0.0)


def test_no_text_can_break_a_subtitle() -> None:
    odd = segment(" a --> b\n\n<c> & d", 3599.9996, 3661.5)
    transcript = to_transcript([Listening("e", 2.0, 0.0), odd, Transcribed("en")])
    assert to_srt(transcript) == "1\n01:00:00,000 --> 01:01:01,500\na -> b <c> & d\n\n"
    assert to_vtt(transcript) == "WEBVTT\n\n01:00:00.000 --> 01:01:01.500\na -&gt; b &lt;c&gt; &amp; d\n\n"


def test_silence_is_an_empty_text() -> None:
    transcript = to_transcript([Listening("e", 2.0, 0.0), Transcribed("en")])
    assert (transcript.text, to_srt(transcript), to_vtt(transcript)) == ("", "", "WEBVTT\n\n")
    deltas = Deltas("r", logprobs=False)
    assert deltas.to_frames(Listening("e", 2.0, 0.0)) == b""
    assert b'"text":""' in deltas.to_frames(Transcribed("en"))
