"""The engines of Whisper models: what is around the model, whichever runtime runs it.

One recording, hop by hop:

    transcribe (event loop) -> spectrogram (in a thread) -> [the model's one thread: a window] -> segments -> ...

Windows of several recordings take turns, in the order in which each became ready for its next.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NoReturn, TypeVar

import msgspec

from sightline.audio.languages import to_name
from sightline.config import ModelConfig
from sightline.engines import EngineInfo
from sightline.engines.delivery import stopped
from sightline.engines.local import LocalEngine, read_options
from sightline.engines.whisper.checkpoint import Facts, read_facts
from sightline.engines.whisper.recording import Recording, Transcriber
from sightline.engines.whisper.vocabulary import Vocabulary
from sightline.engines.whisper.window import Cancelled, SpeechModel
from sightline.errors import EngineFailed, InvalidRequest, SightlineError, UnsupportedFeature
from sightline.types import EngineRequest, Event, TokenCount, Transcribed, TranscriptionEvent, TranscriptionRequest

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What is there between `start` and `close`."""

    info: EngineInfo
    transcriber: Transcriber

    def close(self) -> None:
        """Nothing: the model goes with the last who knows it."""


class WhisperEngine(LocalEngine[_Loaded]):
    """An `Engine` that transcribes and does nothing else; `worker` gives it a process of its own."""

    OPTIONS: ClassVar[type[msgspec.Struct]]

    def __init__(self, config: ModelConfig) -> None:
        """Raises `InvalidRequest` for options that do not exist here or have the wrong type."""
        super().__init__(config)
        self._options: Any = read_options(config, self.OPTIONS, "Engine options, of a Whisper model")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="whisper")

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        self._refuse_chat()

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        self._refuse_chat()
        yield  # which makes it a generator

    async def transcribe(self, request: TranscriptionRequest) -> AsyncGenerator[TranscriptionEvent, None]:
        """As `Transcribes.transcribe`."""
        transcriber = self._running.transcriber
        _verify(request, transcriber.vocabulary, self._config.name)
        gone = threading.Event()

        def is_wanted() -> bool:
            return not gone.is_set() and not self._closed

        try:
            recording = await asyncio.to_thread(Recording, transcriber, request, is_wanted)
            while not recording.is_over:
                for segment in await self._run(recording.window):
                    yield segment
            yield Transcribed(recording.language or "en")
        finally:
            gone.set()

    async def close(self) -> None:
        await super().close()
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    # --- what each runtime does --------------------------------------------------------------------------------------

    @abstractmethod
    def open_model(self, facts: Facts) -> SpeechModel:
        """Loads the model, in the thread in which it will run. Raises `CheckpointError`, `OSError`, `RuntimeError`."""

    # ------------------------------------------------------------------------------------------------------------------

    async def _run(self, work: Callable[[], T]) -> T:
        """In the model's thread, when it is its turn."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except Cancelled:
            raise stopped() from None
        except SightlineError:
            raise
        except Exception as error:
            if self._closed:  # there is no thread any more
                raise stopped() from None
            log.exception("model %s failed under a recording", self._config.name)
            raise EngineFailed("The engine failed. The server's log says why.") from error

    async def _in_thread(self, load: Callable[[], _Loaded]) -> _Loaded:
        return await asyncio.get_running_loop().run_in_executor(self._thread, load)

    def _load(self) -> _Loaded:
        model_dir = self._config.path
        facts = read_facts(model_dir)
        vocabulary = Vocabulary(model_dir, facts)
        info = EngineInfo(
            engine=self._config.engine,
            context_length=facts.shape.target_positions,
            work=frozenset({"transcription"}),
        )
        return _Loaded(info, Transcriber(self.open_model(facts), facts, vocabulary))

    def _refuse_chat(self) -> NoReturn:
        _ = self._running
        raise UnsupportedFeature(
            f"The model {self._config.name!r} writes down speech and does nothing else. Choose another model.",
            param="model",
        )


def _verify(request: TranscriptionRequest, vocabulary: Vocabulary, model: str) -> None:
    """Raises `InvalidRequest` for a language, `UnsupportedFeature` for a task, that the model does not know."""
    known = vocabulary.languages if vocabulary.is_multilingual else {"en": 0}
    if request.language is not None and request.language not in known:
        names = ", ".join(f"{code} ({to_name(code)})" for code in sorted(known))
        raise InvalidRequest(
            f"The model {model!r} does not know the language {to_name(request.language)}. It knows {names}.",
            param="language",
        )
    if request.task == "translate" and not vocabulary.is_multilingual:
        raise UnsupportedFeature(f"The model {model!r} knows English only and cannot translate.", param="model")


class OpenVINOOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Those of the openvino engine that mean something for Whisper."""

    inference_precision: Literal["f32", "f16", "bf16"] = "f32"
    num_threads: int = 0
    """CPU threads; 0: all."""


class OpenVINOWhisperEngine(WhisperEngine):
    OPTIONS = OpenVINOOptions

    def open_model(self, facts: Facts) -> SpeechModel:
        from sightline.engines.whisper.openvino import OpenVINOWhisper

        options: OpenVINOOptions = self._options
        return OpenVINOWhisper(
            self._config.path,
            facts,
            inference_precision=options.inference_precision,
            num_threads=options.num_threads,
        )


class TorchOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Those of the transformers engine that mean something for Whisper."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: float16 on a GPU, float32 on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    """CPU threads; 0: as torch chooses."""


class TransformersWhisperEngine(WhisperEngine):
    OPTIONS = TorchOptions

    def open_model(self, facts: Facts) -> SpeechModel:
        from sightline.engines.whisper.torch_model import TorchWhisper

        options: TorchOptions = self._options
        return TorchWhisper(
            self._config.path, facts, dtype=options.dtype, device=options.device, threads=options.threads
        )
