"""The engine itself: its options, its line, its steps."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import msgspec

from sightline.config import ModelConfig
from sightline.engines import EngineInfo
from sightline.engines.fake.instances import Instances
from sightline.engines.fake.script import Plan, crash, read_script, to_plan
from sightline.engines.fake.sight import seen
from sightline.engines.fake.tokens import count_tokens, to_logprob
from sightline.engines.fake.vectors import embed
from sightline.engines.stops import StopStrings
from sightline.errors import (
    ContextLengthExceeded,
    EngineFailed,
    EngineUnavailable,
    InvalidRequest,
    SightlineError,
)
from sightline.images.budget import CellBudget
from sightline.types import (
    Delta,
    EmbeddingRequest,
    Embeddings,
    EngineRequest,
    Event,
    Finish,
    FinishReason,
    TextDelta,
    Timing,
    TokenCount,
    TokenLogprob,
    Usage,
)

_FEATURES = frozenset(
    {
        "seed", "top_k", "min_p", "penalties", "logprobs", "min_tokens", "ignore_eos", "tools", "parallel_tool_calls",
        "json_object", "json_schema",
    }
)  # fmt: skip
_PICTURES_KEPT = 1024
_STARTUP_STEPS = 10
_LAST_WORDS_S = 0.05
"""Between the last token and a crash."""


class FakeOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelConfig.options` of this engine."""

    slots: int | None = None
    """Sequences that run at once; None: the model's `max_concurrent`."""
    step_s: float = 0.0
    prefill_s_per_token: float = 0.0
    prefill_chunk: int = 256
    """Prompt tokens in one step."""
    startup_s: float = 0.0
    startup: str = "ok"
    """`ok`, `error` (raises) or `crash` (ends the process): how loading ends."""
    context_length: int = 8192
    cell: int = 28
    min_image_tokens: int = 16
    max_image_tokens: int = 128
    script: str = ""
    """Commands for messages that hold none."""


class FakeEngine:
    """See the package. Its counters (`steps`, `running`, `waiting`) are for tests that count."""

    def __init__(self, config: ModelConfig) -> None:
        """Raises `InvalidRequest` for options it does not know or that have the wrong type."""
        try:
            options = msgspec.convert(dict(config.options), FakeOptions)
        except msgspec.ValidationError as error:
            known = ", ".join(FakeOptions.__struct_fields__)
            raise InvalidRequest(f"The fake engine's options: {error}. Known: {known}.", param="options") from None
        read_script(options.script, "options")  # a wrong script is found at start, not at the first request
        self._options = options
        self._slots = config.max_concurrent if options.slots is None else options.slots
        area = options.cell**2
        self._vision = CellBudget(options.cell, options.min_image_tokens * area, options.max_image_tokens * area)
        self.info = EngineInfo(
            engine="fake",
            context_length=options.context_length,
            vision=self._vision,
            features=_FEATURES,
            work=frozenset({"messages", "completions", "embeddings"}),
        )
        self.progress: float | None = None
        self.steps = 0
        """Steps run since start."""
        self._line: list[_Sequence] = []  # all that are not done: who runs is the first `slots` of those admitted
        self._running: list[_Sequence] = []
        self._arrivals = itertools.count()
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._closed = False
        self._pictures: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._instances = Instances()

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences that wait for one."""
        return len(self._line)

    async def start(self) -> None:
        for step in range(_STARTUP_STEPS):
            self.progress = step / _STARTUP_STEPS
            await asyncio.sleep(self._options.startup_s / _STARTUP_STEPS)
        self.progress = 1.0
        if self._options.startup == "crash":
            crash("The fake engine was told to crash at start.")
        if self._options.startup != "ok":
            raise EngineUnavailable("The fake engine was told to fail at start.")
        self._loop = asyncio.create_task(self._run())

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        count = count_tokens(request, self._vision)
        limit, wanted = self._options.context_length, request.sampling.max_tokens
        if count.prompt_tokens + (wanted if wanted is not None else 1) > limit:
            asked = f" and {wanted} for the answer" if wanted is not None else ""
            raise ContextLengthExceeded(
                f"This model's context holds {limit} tokens. The prompt takes {count.prompt_tokens}{asked}. "
                "Shorten the prompt, send fewer or smaller pictures, or lower max_tokens.",
                param="messages" if request.prompt is None else "prompt",
            )
        return count

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        if self._loop is None or self._closed:
            raise EngineUnavailable("The engine is not running.")
        await asyncio.sleep(self._options.step_s)
        return embed(request, self._options.context_length)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        if self._loop is None or self._closed:
            raise EngineUnavailable("The engine is not running.")
        count = await self.count_tokens(request)
        room = self._options.context_length - count.prompt_tokens
        shaped = await self._instances.of(request, seen(request))
        sequence = _Sequence(
            plan=to_plan(request, self._options.script, shaped),
            request=request,
            order=(-request.priority, next(self._arrivals)),
            count=count,
            images_cached=self._remember(request),
            limit=room if request.sampling.max_tokens is None else request.sampling.max_tokens,
            to_prefill=count.prompt_tokens,
        )
        self._line.append(sequence)
        self._wake.set()
        try:
            while True:
                event = await sequence.events.get()
                if isinstance(event, SightlineError):
                    raise event
                yield event
                if isinstance(event, Finish):
                    return
        finally:
            self._free(sequence)

    async def close(self) -> None:
        self._closed = True
        self._instances.close()
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])
        self._end_all()

    def _end_all(self) -> None:
        self._closed = True
        for sequence in [*self._line, *self._running]:
            self._end(sequence, EngineUnavailable("The engine is being stopped."))

    # --- continuous batching -------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._admit()
            due = min((s.due for s in self._running), default=math.inf)
            if due > time.perf_counter():
                await self._sleep_until(due)
                continue
            prefilled = self._prefill()
            await asyncio.sleep(self._options.step_s + self._options.prefill_s_per_token * prefilled)
            self._step()

    async def _sleep_until(self, due: float) -> None:
        """Until a sequence is due, or something changed who runs."""
        self._wake.clear()
        try:
            async with asyncio.timeout(None if due == math.inf else due - time.perf_counter()):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _admit(self) -> None:
        self._line.sort(key=lambda s: s.order)
        while self._line and len(self._running) < self._slots:
            sequence = self._line.pop(0)
            sequence.admitted = sequence.due = time.perf_counter()
            self._running.append(sequence)

    def _prefill(self) -> int:
        """Takes the next chunk of prompts, in order of admission; returns its tokens."""
        left = self._options.prefill_chunk
        for sequence in self._running:
            tokens = min(left, sequence.to_prefill)
            sequence.to_prefill -= tokens
            left -= tokens
        return self._options.prefill_chunk - left

    def _step(self) -> None:
        self.steps += 1
        for sequence in list(self._running):
            if not sequence.to_prefill and sequence.due <= time.perf_counter():
                self._decode(sequence)

    def _decode(self, sequence: _Sequence) -> None:
        try:
            last: Finish | SightlineError | None = self._next_token(sequence)
        except EngineFailed as error:
            last = error
        if last is not None:
            self._end(sequence, last)

    def _next_token(self, sequence: _Sequence) -> Finish | None:
        plan, now = sequence.plan, time.perf_counter()
        sequence.first_token = sequence.first_token or now
        if plan.hangs:
            sequence.due = math.inf
            return None
        if plan.breaks:
            self._end_all()
            return None
        if sequence.made == plan.crash_at:
            if not sequence.last_words:  # what it has said must be out first, or "at token K" would mean little
                sequence.last_words, sequence.due = True, now + _LAST_WORDS_S
                return None
            crash("The fake engine was told to crash.")
        if sequence.made == plan.error_at:
            raise EngineFailed("The fake engine was told to fail.")
        if sequence.made >= sequence.limit:
            return self._finish(sequence, "length")
        token = next(plan.tokens, None)
        if token is None:
            return self._finish(sequence, plan.reason)
        sequence.made += 1
        sequence.due = now + plan.slow_s
        hit = self._emit(sequence, token)
        if hit is not None:
            return self._finish(sequence, "stop", hit)
        # The token that fills the answer also ends it: a real engine does not spend a step on finding that out.
        return self._finish(sequence, "length") if sequence.made >= sequence.limit else None

    def _emit(self, sequence: _Sequence, token: Delta) -> str | None:
        """Sends a token, or holds it back while it may become a stop string. Returns the stop string it completed."""
        if not isinstance(token, TextDelta):
            sequence.events.put_nowait(token)
            return None
        sampling = sequence.request.sampling
        logprob = None if sampling.logprobs is None else to_logprob(token.text, sampling.logprobs)
        sequence.untold.append((sequence.num_chars, logprob))
        sequence.num_chars += len(token.text)
        # Like vLLM: what is said before min_tokens is not looked at for stops.
        early = sequence.made < sampling.min_tokens
        shown, hit = (token.text, None) if early else sequence.stops.push(token.text)
        self._show(sequence, shown)
        return hit

    def _show(self, sequence: _Sequence, text: str) -> None:
        """With the text go the tokens that begin in it; those of a stop string are never told."""
        if text:
            sequence.num_shown += len(text)
            told = [logprob for start, logprob in sequence.untold if start < sequence.num_shown]
            del sequence.untold[: len(told)]
            logprobs = tuple(logprob for logprob in told if logprob is not None)
            sequence.events.put_nowait(TextDelta(text, len(told), logprobs))

    def _finish(self, sequence: _Sequence, reason: FinishReason, stop: str | None = None) -> Finish:
        if stop is None:
            self._show(sequence, sequence.stops.flush())
        now = time.perf_counter()
        usage = Usage(
            prompt_tokens=sequence.count.prompt_tokens,
            completion_tokens=sequence.made,
            image_tokens=sequence.count.image_tokens,
            images_cached=sequence.images_cached,
            reasoning_tokens=min(sequence.made, sequence.plan.reasoning_tokens),
        )
        timing = Timing(
            queue_s=sequence.admitted - sequence.arrived,
            prefill_s=sequence.first_token - sequence.admitted,
            decode_s=now - sequence.first_token,
        )
        return Finish(reason, usage, timing, stop)

    def _end(self, sequence: _Sequence, last: Finish | SightlineError) -> None:
        sequence.events.put_nowait(last)
        self._free(sequence)

    def _free(self, sequence: _Sequence) -> None:
        for place in (self._line, self._running):
            if sequence in place:
                place.remove(sequence)
                self._wake.set()

    def _remember(self, request: EngineRequest) -> tuple[bool, ...]:
        """Whether each picture was seen before from the same tenant: caches never cross tenants."""
        cached = []
        for image in request.images:
            key = (request.tenant, image.digest)
            cached.append(key in self._pictures)
            self._pictures[key] = None
            self._pictures.move_to_end(key)
        while len(self._pictures) > _PICTURES_KEPT:
            self._pictures.popitem(last=False)
        return tuple(cached)


@dataclass(slots=True, eq=False)
class _Sequence:
    plan: Plan
    request: EngineRequest
    order: tuple[int, int]
    count: TokenCount
    images_cached: tuple[bool, ...]
    limit: int
    to_prefill: int
    made: int = 0
    num_chars: int = 0
    """Of text: made, whether shown or held back."""
    num_shown: int = 0
    untold: list[tuple[int, TokenLogprob | None]] = field(default_factory=list)
    """Text tokens that are in no delta yet: the character at which each begins, and its log-probability if wanted."""
    stops: StopStrings = field(init=False)
    events: asyncio.Queue[Event | SightlineError] = field(default_factory=asyncio.Queue)
    """Unbounded, but holds at most `limit` tokens."""
    arrived: float = field(default_factory=time.perf_counter)
    admitted: float = 0.0
    first_token: float = 0.0
    due: float = 0.0
    """When it may have its next token."""
    last_words: bool = False
    """It is about to crash."""

    def __post_init__(self) -> None:
        self.stops = StopStrings(self.request.sampling.stop)
