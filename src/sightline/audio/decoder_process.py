"""Inside a decoder process: one hostile file, under limits that the kernel enforces, and then it ends.

    python -m sightline.audio.decoder_process FILE_FD SAMPLES_FD LIMITS_JSON

Started by `decoder.py`, ahead of need: it imports what it takes, says `ready` on a line of its own and waits for one
line of input, which means that the file lies behind the first descriptor. Then it writes samples (float32, mono,
16 kHz) behind the second, piece by piece, so that its memory does not grow with the recording, and a line of JSON, a
`Decoded` or a `Refused`.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any, Final

import msgspec

from sightline.audio.identify import FORMATS, HEAD_BYTES, demuxer
from sightline.audio.mel import SAMPLE_RATE
from sightline.config import AudioLimits
from sightline.errors import (
    AudioEmpty,
    AudioError,
    AudioFormatUnsupported,
    AudioTooLong,
    AudioTooShort,
    AudioUnreadable,
)

MIN_S: Final = 0.1
"""Shorter is no speech, as OpenAI's service has it."""
_CODECS: Final = frozenset(
    {
        "aac", "alac", "flac", "libopus", "mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float", "opus", "vorbis",
        "pcm_alaw", "pcm_f32le", "pcm_f64le", "pcm_mulaw", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_u8",
        "adpcm_ima_wav", "adpcm_ms",
    }
)  # fmt: skip
"""What recorders and browsers write. FFmpeg knows hundreds more, old and little tested: no file may choose one."""
_OPTIONS: Final = {"codec_whitelist": ",".join(sorted(_CODECS)), "protocol_whitelist": "none"}
"""Of the reader, which tries decoders by itself to find out what is in the file."""
_MISSING: Final = {"flac": (0.0, 0.02)}
"""How much of the length that the file itself declares may be missing before its end is taken for lost, or a part for
damaged: a share of it, and seconds. Lossless files declare it to the sample."""
_MISSING_ELSEWHERE: Final = (0.1, 0.5)
_NICENESS: Final = 10


class Decoded(msgspec.Struct, frozen=True, tag=True):
    samples: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    error: str
    """Name of a class of `AudioError`."""
    message: str


Reply = Decoded | Refused
READY: Final = b"ready\n"


def decode(file: IO[bytes], out: IO[bytes], limits: AudioLimits) -> int:
    """Writes the file's sound as float32, mono at 16 kHz; returns how many samples.

    Raises an `AudioError`. The message says what is wrong, and where in the recording.
    """
    import av

    head = file.read(HEAD_BYTES)
    file.seek(0)
    if not head:
        raise AudioEmpty("The file has no content.")
    name = demuxer(head)
    if name is None:
        raise AudioFormatUnsupported(f"The file is none of {FORMATS}, by its first bytes. Convert it to one of them.")
    most = limits.max_s * SAMPLE_RATE
    count = 0
    try:
        with av.open(file, format=name, options=_OPTIONS) as container:
            if not container.streams.audio:
                raise AudioUnreadable("The file has no sound in it.")
            stream = container.streams.audio[0]
            if stream.codec_context is None or stream.codec_context.name not in _CODECS:
                raise _coded_otherwise()
            declared_s = _declared_s(container, stream, name, head)
            if declared_s is not None and declared_s > limits.max_s + 1:
                raise _too_long(limits.max_s)
            stream.codec_context.thread_type = "NONE"
            stream.codec_context.options = {"err_detect": "crccheck+explode"}
            for samples in _resampled(container, stream):
                count += samples.size
                if count > most:
                    raise _too_long(limits.max_s)
                out.write(samples.data)
    except AudioError:
        raise
    except av.FFmpegError as error:
        if _is_for_codec(error):
            raise _coded_otherwise() from None
        at = f" after {count / SAMPLE_RATE:.1f} s" if count else ""
        raise AudioUnreadable(f"The file is truncated or damaged{at}. Send it again, whole.") from None
    except (ValueError, MemoryError, OverflowError):
        raise AudioUnreadable("The file is damaged. Save it anew.") from None
    seconds = count / SAMPLE_RATE
    share, least_s = _MISSING.get(name, _MISSING_ELSEWHERE)
    if declared_s is not None and seconds < declared_s * (1 - share) - least_s:
        raise AudioUnreadable(
            f"Only {seconds:.1f} of the file's {declared_s:.1f} s can be read: it is truncated or damaged. "
            "Send it again, whole."
        )
    if seconds < MIN_S:
        raise AudioTooShort(f"The recording is {seconds:.2f} s long; {MIN_S:g} s is the least that can be heard.")
    return count


def _resampled(container: Any, stream: Any) -> Iterator[Any]:
    import av

    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    for frame in container.decode(stream):
        frame.pts = None  # gaps and jumps of a clock are not sound
        for part in resampler.resample(frame):
            yield part.to_ndarray()[0]
    for part in resampler.resample(None):
        yield part.to_ndarray()[0]


def _declared_s(container: Any, stream: Any, name: str, head: bytes) -> float | None:
    """Seconds, where the file itself says so; None where FFmpeg would only estimate, or does not know."""
    if name == "wav":
        return _wav_s(stream, head)
    if name == "mpeg" or (name == "mp3" and b"Xing" not in head and b"Info" not in head):
        return None
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else float(container.duration / 1_000_000)


def _wav_s(stream: Any, head: bytes) -> float | None:
    """By the size that its `data` chunk declares, since FFmpeg goes by what is there. Recorders that write to a pipe
    declare 0 or the largest number."""
    at = head.find(b"data", 12)
    rate = stream.codec_context.bit_rate
    size = int.from_bytes(head[at + 4 : at + 8], "little") if 0 <= at <= len(head) - 8 else 0
    return size * 8 / rate if rate and 0 < size < 0x7FFFFF00 else None


def _is_for_codec(error: Exception) -> bool:
    import av

    return isinstance(error, av.error.DecoderNotFoundError | av.error.PatchWelcomeError)


def _coded_otherwise() -> AudioFormatUnsupported:
    return AudioFormatUnsupported(
        f"The file's sound is coded in a way that is not taken. Convert it to one of {FORMATS}."
    )


def _too_long(max_s: int) -> AudioTooLong:
    return AudioTooLong(f"The recording is longer than the {max_s} s that this server takes. Send it in parts.")


def main() -> None:
    file_fd, samples_fd = int(sys.argv[1]), int(sys.argv[2])
    limits = msgspec.json.decode(sys.argv[3], type=AudioLimits)
    if sys.platform == "linux":  # elsewhere the kernel does not keep to it, or refuses it
        resource.setrlimit(resource.RLIMIT_AS, (limits.decoder_memory_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (limits.decoder_cpu_s, limits.decoder_cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold somebody's voice
    os.nice(_NICENESS)
    import av
    import numpy  # noqa: F401  # now, while nobody waits

    av.logging.set_level(None)  # a file must not choose what stands in the server's log
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    if not sys.stdin.buffer.readline():
        return  # the server has gone
    reply: Reply
    try:
        with open(file_fd, "rb", closefd=False) as file, open(samples_fd, "wb", closefd=False) as out:
            file.seek(0)
            reply = Decoded(decode(file, out, limits))
    except AudioError as error:
        reply = Refused(type(error).__name__, error.message)
    with suppress(BrokenPipeError):
        sys.stdout.buffer.write(msgspec.json.encode(reply) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
