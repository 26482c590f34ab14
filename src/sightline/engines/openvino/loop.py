"""The step loop: one thread that owns scheduler, blocks, models and caches, and runs step after step.

Between two steps it takes what has come in: new generations, and those that nobody wants any more. A cancelled
generation therefore frees its sequence within one step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sightline.engines.generation import Generation as AnyGeneration
from sightline.engines.openvino.blocks import BlockPool, PrefixNames
from sightline.engines.openvino.prompt import Prompt
from sightline.engines.openvino.runner import Embeddings, LanguageRunner, Piece, Tokens
from sightline.engines.openvino.scheduler import Chunk, Scheduler, Sequence
from sightline.engines.openvino.vision import VisionEncoder
from sightline.engines.sampler import Logits
from sightline.engines.steps import StepThread
from sightline.errors import EngineFailed, SightlineError
from sightline.types import EngineRequest, Event, Finish

log = logging.getLogger(__name__)


class Generation(AnyGeneration[Prompt]):
    def __init__(self, request: EngineRequest, prompt: Prompt, *rest: Any) -> None:
        super().__init__(request, prompt, *rest)
        self.pictures: list[Embeddings | None] = [None] * len(prompt.images)
        """Embeddings, once a chunk has needed them. Kept until the end: the sequence may have to be computed again."""
        self.pictures_cached = [True] * len(prompt.images)

    def positions(self, begin: int, end: int) -> Tokens:
        """[3, tokens]: the prompt's own, and one further for each token generated."""
        if end <= len(self.prompt.tokens):
            return self.prompt.positions[:, begin:end]
        generated = np.arange(max(begin, len(self.prompt.tokens)), end) - len(self.prompt.tokens)
        following = np.broadcast_to(self.prompt.next_position + generated, (3, len(generated)))
        return np.concatenate([self.prompt.positions[:, begin:], following], axis=1)


class StepLoop(StepThread[Generation]):
    """Runs as soon as it is made."""

    def __init__(self, runner: LanguageRunner, encoder: VisionEncoder, *, max_running: int, step_tokens: int) -> None:
        super().__init__("openvino-steps")
        self._runner = runner
        self._encoder = encoder
        self._pool = BlockPool(runner.num_blocks, runner.block_size)
        self._scheduler = Scheduler(self._pool, max_running=max_running, step_tokens=step_tokens)
        self._live: dict[Sequence, Generation] = {}
        self._sequences: dict[Generation, Sequence] = {}
        self._arrivals = 0
        self.begin()

    @property
    def measures(self) -> Mapping[str, float]:
        """As `engines.Measures`. Numbers of one moment or the next, since steps go on meanwhile."""
        pool = self._pool
        return {
            "kv_blocks": pool.num_blocks,
            "kv_blocks_used": pool.num_blocks - pool.num_available,
            "kv_blocks_cached": pool.num_kept,
            "embedding_cache_bytes": self._encoder.kept_bytes,
        }

    @property
    def is_idle(self) -> bool:
        return self._scheduler.is_idle

    def under_way(self) -> Iterable[Generation]:
        return self._sequences

    def take(self, generation: Generation) -> None:
        request, prompt = generation.request, generation.prompt
        self._arrivals += 1
        names = PrefixNames(request.tenant, self._pool.block_size, prompt.spans)
        sequence = Sequence(self._arrivals, list(prompt.tokens), names, request.priority)
        self._live[sequence] = generation
        self._sequences[generation] = sequence
        self._scheduler.add(sequence)

    def drop(self, generation: Generation) -> None:
        if (sequence := self._sequences.get(generation)) is not None:
            self._forget(generation, sequence)

    def _forget(self, generation: Generation, sequence: Sequence) -> None:
        del self._live[sequence], self._sequences[generation]
        self._scheduler.finish(sequence)

    def _end(self, generation: Generation, *last: Event | SightlineError) -> None:
        self._forget(generation, self._sequences[generation])
        generation.deliver([*last])

    def step(self) -> None:
        chunks = self._scheduler.schedule()
        try:
            self._compute(chunks)
        except Exception:
            # Whatever it was, keys and values of this step are not to be trusted: its sequences end here.
            log.exception("a step of %d sequences failed", len(chunks))
            for chunk in chunks:
                if (generation := self._live.get(chunk.sequence)) is not None:
                    self._end(generation, EngineFailed("The engine failed while it ran this request."))

    def _compute(self, chunks: list[Chunk]) -> None:
        now = time.perf_counter()
        for chunk in chunks:
            generation = self._live[chunk.sequence]
            generation.scheduled = generation.scheduled or now
        chunks = [chunk for chunk in chunks if self._encode_pictures(chunk)]
        if not chunks:
            return
        logits = self._runner.forward([self._piece(chunk) for chunk in chunks])
        self._scheduler.advance(chunks)
        for chunk, row in zip((c for c in chunks if c.is_last), logits, strict=True):
            self._extend(chunk.sequence, row)

    def _encode_pictures(self, chunk: Chunk) -> bool:
        """Sees to the embeddings of the pictures that the chunk reaches. False: one failed, the generation has ended.

        Pictures are encoded when a chunk needs them, so those that the prefix cache covers never are.
        """
        generation = self._live[chunk.sequence]
        began = time.perf_counter()
        for index, (span, image) in enumerate(zip(generation.prompt.spans, generation.prompt.images, strict=True)):
            if generation.pictures[index] is None and span.begin < chunk.end and chunk.begin < span.end:
                try:
                    embeddings, cached = self._encoder.encode(image, generation.request.tenant)
                except Exception:
                    log.exception("a picture of %dx%d px could not be encoded", image.served_width, image.served_height)
                    self._end(generation, EngineFailed("The engine failed to encode a picture of this request."))
                    return False
                generation.pictures[index] = embeddings
                generation.pictures_cached[index] = cached
        generation.encode_s += time.perf_counter() - began
        return True

    def _piece(self, chunk: Chunk) -> Piece:
        generation, tokens = self._live[chunk.sequence], chunk.sequence.tokens[chunk.begin : chunk.end]
        pictures = []
        for span, embeddings in zip(generation.prompt.spans, generation.pictures, strict=True):
            begin, end = max(span.begin, chunk.begin), min(span.end, chunk.end)
            if begin < end:
                assert embeddings is not None  # _encode_pictures has seen to it
                pictures.append((begin - chunk.begin, embeddings[begin - span.begin : end - span.begin]))
        positions = generation.positions(chunk.begin, chunk.end)
        return Piece(tokens, pictures, positions, chunk.begin, chunk.sequence.blocks, chunk.is_last)

    def _extend(self, sequence: Sequence, logits: Logits) -> None:
        """Samples the sequence's next token and delivers what came of it."""
        generation = self._live[sequence]
        generation.cached_tokens = sequence.num_cached or 0
        try:
            events = generation.extend(logits)
        except SightlineError as error:
            self._end(generation, error)
            return
        sequence.tokens.append(generation.last_token)
        if events and isinstance(events[-1], Finish):
            self._end(generation, *events)
        elif events:
            generation.deliver([*events])
