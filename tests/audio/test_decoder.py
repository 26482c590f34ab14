"""Bytes to samples: every container, what is refused and in which words, and what a hostile file may cost."""

from __future__ import annotations

import asyncio
import io
import signal
import time
import wave
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from sightline.audio.decoder import AudioDecoder
from sightline.audio.decoder_process import decode
from sightline.audio.identify import demuxer
from sightline.audio.mel import SAMPLE_RATE
from sightline.config import AudioLimits
from sightline.errors import (
    AudioEmpty,
    AudioError,
    AudioFileTooLarge,
    AudioFormatUnsupported,
    AudioTooLong,
    AudioTooShort,
    AudioUnreadable,
)
from sightline.types import AudioRef, Samples
from tests.audio.recordings import CONTAINERS, encoded, tone

pytestmark = pytest.mark.anyio


def decoded(file: bytes, **limits: Any) -> Samples:
    """As the process does it, in this one."""
    out = io.BytesIO()
    count = decode(io.BytesIO(file), out, AudioLimits(**limits))
    samples = np.frombuffer(out.getvalue(), np.float32)
    assert len(samples) == count
    return samples


def loudest_hz(samples: Samples) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * SAMPLE_RATE / len(samples))


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_tone_is_the_same_tone_from_every_container(name: str) -> None:
    samples = decoded(encoded(tone(2.0, 440), name))
    assert len(samples) / SAMPLE_RATE == pytest.approx(2.0, abs=0.05)
    assert loudest_hz(samples) == pytest.approx(440, abs=2)
    assert np.sqrt(np.mean(samples**2)) == pytest.approx(0.5 / 2**0.5, rel=0.1)


@pytest.mark.parametrize(("rate", "layout"), [(8_000, "mono"), (44_100, "stereo"), (96_000, "5.1")])
def test_any_rate_and_any_number_of_channels_become_16_khz_mono(rate: int, layout: str) -> None:
    samples = decoded(encoded(tone(1.0, 1000), "wav", rate=rate, layout=layout))
    assert len(samples) == pytest.approx(SAMPLE_RATE, abs=50)
    assert loudest_hz(samples) == pytest.approx(1000, abs=3)


def half(file: bytes) -> bytes:
    return file[: len(file) // 2]


def damaged(file: bytes) -> bytes:
    broken = bytearray(file)
    for index in range(len(file) // 2, len(file) // 2 + 200):
        broken[index] ^= 0x5A
    return bytes(broken)


def playlist() -> bytes:
    return b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"


REFUSED = [
    ("flac cut", lambda: half(encoded(tone(3), "flac")), AudioUnreadable, "truncated or damaged after"),
    ("mp3 cut", lambda: half(encoded(tone(3), "mp3")), AudioUnreadable, "Only 1.5 of the file's 3.0 s"),
    ("mp4 cut", lambda: half(encoded(tone(3), "mp4")), AudioUnreadable, "truncated or damaged"),
    ("wav cut", lambda: half(encoded(tone(3), "wav")), AudioUnreadable, "Only 1.5 of the file's 3.0 s"),
    ("webm cut", lambda: half(encoded(tone(3), "webm")), AudioUnreadable, "Only 1.5 of the file's 3.0 s"),
    ("mp3 damaged", lambda: damaged(encoded(tone(3), "mp3")), AudioUnreadable, "truncated or damaged"),
    ("mp4 damaged", lambda: damaged(encoded(tone(3), "mp4")), AudioUnreadable, "truncated or damaged"),
    ("flac damaged", lambda: damaged(encoded(tone(3), "flac")), AudioUnreadable, "Only 2.9 of"),
    ("only a header", lambda: encoded(tone(3), "flac")[:60], AudioUnreadable, ""),
    ("noise with a header", lambda: b"OggS" + bytes(range(256)) * 20, AudioUnreadable, ""),
    ("pictures only", lambda: encoded(tone(0), "mp4", video=True), AudioUnreadable, "no sound"),
    ("text", lambda: b"hello, this is no recording", AudioFormatUnsupported, "flac, mp3, mp4"),
    ("a playlist", playlist, AudioFormatUnsupported, "flac, mp3, mp4"),
    ("a picture", lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), AudioFormatUnsupported, "flac, mp3, mp4"),
    ("another codec", lambda: encoded(tone(1), "ac3 in webm"), AudioFormatUnsupported, "coded in a way"),
    (
        "an unknown codec",
        lambda: encoded(tone(1)).replace(b"\x01\x00\x01\x00", b"\x77\x77\x01\x00", 1),
        AudioFormatUnsupported,
        "coded in a way",
    ),
    ("nothing", lambda: b"", AudioEmpty, "no content"),
    ("too short", lambda: encoded(tone(0.05), "wav"), AudioTooShort, "0.05 s"),
]


@pytest.mark.parametrize(("make", "error", "says"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_is_refused_and_why(make: Any, error: type[AudioError], says: str) -> None:
    with pytest.raises(error) as caught:
        decoded(make())
    assert says in caught.value.message


def test_a_recording_written_to_a_pipe_declares_no_length_and_is_taken() -> None:
    file = bytearray(encoded(tone(1.0), "wav"))
    at = file.find(b"data")
    for size in (0, 0xFFFFFFFF):
        file[at + 4 : at + 8] = size.to_bytes(4, "little")
        assert len(decoded(bytes(file))) == pytest.approx(SAMPLE_RATE, abs=50)


def test_hours_of_silence_in_few_bytes_are_refused_before_they_are_all_decoded() -> None:
    minutes = encoded(np.zeros(600 * SAMPLE_RATE, np.float32), "flac", rate=8_000)
    assert len(minutes) < 120_000
    unknown = bytearray(minutes)  # the total of samples: 36 bits, 0 for "unknown"
    unknown[21] &= 0xF0
    unknown[22:26] = bytes(4)
    for bomb in (minutes, bytes(unknown)):
        out = io.BytesIO()
        with pytest.raises(AudioTooLong, match="longer than the 20 s"):
            decode(io.BytesIO(bomb), out, AudioLimits(max_s=20))
        assert out.tell() <= 20 * SAMPLE_RATE * 4


def test_containers_are_told_by_content_alone() -> None:
    assert {name: demuxer(encoded(tone(0.5), name)[:64]) for name in CONTAINERS} == {
        "flac": "flac", "mp3": "mp3", "mp4": "mov", "m4a": "mov", "mpeg": "mpeg", "mpga": "mp3", "ogg": "ogg",
        "wav": "wav", "webm": "matroska",
    }  # fmt: skip
    assert demuxer(b"\xff\xf1\x50\x80") is None  # AAC without a container
    assert demuxer(b"RIFF\0\0\0\0AVI ") is None


# --- the processes ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def decoder() -> AsyncIterator[AudioDecoder]:
    decoder = AudioDecoder(AudioLimits(max_bytes=1_000_000, max_s=60, decoder_cpu_s=2, decoders=2))
    yield decoder
    await decoder.close()


async def test_processes_decode_beside_each_other_and_name_the_place_of_what_they_refuse(decoder: AudioDecoder) -> None:
    files = [encoded(tone(1.0, hz), "flac") for hz in (300, 500, 700)]
    heard = await asyncio.gather(*(decoder.decode(AudioRef(f, "file")) for f in files))
    assert [round(loudest_hz(s), -1) for s in heard] == [300, 500, 700]
    with pytest.raises(AudioUnreadable) as caught:
        await decoder.decode(AudioRef(half(files[0]), "file"))
    assert caught.value.param == "file"
    with pytest.raises(AudioFileTooLarge, match="1000001 bytes"):
        await decoder.decode(AudioRef(bytes(1_000_001), "file"))


async def test_who_leaves_ends_the_process_and_the_next_is_served(decoder: AudioDecoder) -> None:
    file = encoded(tone(1.0), "flac")
    await decoder.decode(AudioRef(file, "file"))
    task = asyncio.create_task(decoder.decode(AudioRef(file, "file")))
    while not decoder._running:
        await asyncio.sleep(0)
    (process,) = decoder._running
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await process.end() == -signal.SIGKILL
    assert len(await decoder.decode(AudioRef(file, "file"))) == pytest.approx(SAMPLE_RATE, abs=50)


async def test_a_process_that_dies_is_the_files_fault_and_not_the_next_ones(decoder: AudioDecoder) -> None:
    file = encoded(tone(1.0), "flac")
    await decoder.decode(AudioRef(file, "file"))
    assert decoder._spare is not None
    (await decoder._spare)._process.kill()
    with pytest.raises(AudioError):
        await decoder.decode(AudioRef(file, "file"))
    assert len(await decoder.decode(AudioRef(file, "file"))) == pytest.approx(SAMPLE_RATE, abs=50)


async def test_the_event_loop_goes_on(decoder: AudioDecoder) -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
        out.writeframes(bytes(900_000))
    task = asyncio.create_task(decoder.decode(AudioRef(file.getvalue(), "file")))
    longest, last = 0.0, time.perf_counter()
    while not task.done():
        await asyncio.sleep(0.002)
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
    assert len(await task) == 450_000
    assert longest < 0.5
