"""An engine without a model: deterministic, scripted, paced. For tests, load tests and docs.

**What it answers.** By default, what reached it, so that a test can assert what a model would have seen:

    I see 2 pictures: 64x48 mostly red; 32x32 mostly blue (top left white). You said: hello

Sizes are the originals', upright; colours are read from the pixels that were served; a quarter of the picture is named
when its main colour is not the whole picture's, which tells how the picture is turned. The same request always gets the
same answer: there is nothing to sample, so seed, temperature and penalties change nothing.

**Scripts.** Commands in the text of the last user message (or in the option `script`, for messages without any):

    [[fake: say TEXT]]          answers TEXT
    [[fake: length N]]          stops after N tokens as if out of room: finish reason `length`
    [[fake: tool NAME {JSON}]]  calls a tool; several commands make several calls
    [[fake: refuse]]            refuses
    [[fake: think TEXT]]        reasons before it answers
    [[fake: slow S]]            takes S more seconds for every token
    [[fake: error K]]           fails with `EngineFailed` in place of token K (from 0)
    [[fake: crash K]]           ends its process in place of token K, as a real engine's crash would; where there is no
                                process of its own to end, fails like `error`
    [[fake: break]]             stops running for good, as a bug would leave it: this request and all others fail
    [[fake: hang]]              never answers, and holds its slot

With `tool_choice` required (or a tool named) and no script, it calls the first allowed tool with `{}`. A JSON object as
response format gives the same facts as an object.

**Tokens.** A token is a run of at most 8 letters, digits and underscores, or one other character, with the whitespace
before it; trailing whitespace is one. A message costs 2 tokens more than its parts, a tool the tokens of its name,
description and compact JSON schema, the start of the answer 1, a picture one token a cell of its served pixels.

**Pace.** Continuous batching as real engines do it: a step takes `step_s` and gives every running sequence one token,
except that a sequence is first prefilled, in chunks of `prefill_chunk` tokens shared by all in the step, each of which
makes the step `prefill_s_per_token` longer. What exceeds `slots` waits, by priority, then in order of arrival.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import re
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
import numpy.typing as npt

from sightline.config import ModelConfig
from sightline.engines import EngineInfo
from sightline.engines.stops import StopStrings
from sightline.errors import (
    ContextLengthExceeded,
    EngineFailed,
    EngineUnavailable,
    InvalidRequest,
    SightlineError,
)
from sightline.images.budget import CellBudget, VisionBudget
from sightline.types import (
    Delta,
    EngineRequest,
    Event,
    Finish,
    FinishReason,
    Image,
    Message,
    Pixels,
    ReasoningDelta,
    RefusalDelta,
    Text,
    TextDelta,
    Timing,
    TokenCount,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)

COLOURS = {
    "black": (0, 0, 0), "white": (255, 255, 255), "gray": (128, 128, 128), "red": (255, 0, 0),
    "green": (0, 160, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "orange": (255, 140, 0),
    "purple": (128, 0, 160), "pink": (255, 150, 190), "brown": (130, 75, 30), "cyan": (0, 220, 220),
}  # fmt: skip
"""Names of colours, and the sRGB values they are nearest to."""

REFUSAL = "I will not answer that."
FILLER = " and so on"
"""What it goes on with when it must not stop: `min_tokens`, `ignore_eos`, a `length` longer than the answer."""
CRASH_STATUS = 70
"""Exit status of the process after `crash`."""

_FEATURES = frozenset(
    {"seed", "top_k", "min_p", "penalties", "logprobs", "min_tokens", "ignore_eos", "tools", "json_object"}
)
_PICTURES_KEPT = 1024
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


def tokenise(text: str) -> list[str]:
    """The tokens of a text; joined, they are the text."""
    return _TOKEN.findall(text)


_TOKEN = re.compile(r"\s*\w{1,8}|\s*[^\w\s]|\s+")


class FakeEngine:
    """See the module. Its counters (`steps`, `running`, `waiting`) are for tests that count."""

    def __init__(self, config: ModelConfig) -> None:
        """Raises `InvalidRequest` for options it does not know or that have the wrong type."""
        try:
            options = msgspec.convert(dict(config.options), FakeOptions)
        except msgspec.ValidationError as error:
            known = ", ".join(FakeOptions.__struct_fields__)
            raise InvalidRequest(f"The fake engine's options: {error}. Known: {known}.", param="options") from None
        _script(options.script, "options")  # a wrong script is found at start, not at the first request
        self._options = options
        self._slots = config.max_concurrent if options.slots is None else options.slots
        area = options.cell**2
        self._vision = CellBudget(options.cell, options.min_image_tokens * area, options.max_image_tokens * area)
        self.info = EngineInfo(
            engine="fake",
            context_length=options.context_length,
            vision=self._vision,
            features=_FEATURES,
        )
        self.steps = 0
        """Steps run since start."""
        self._line: list[_Sequence] = []  # all that are not done: who runs is the first `slots` of those admitted
        self._running: list[_Sequence] = []
        self._arrivals = itertools.count()
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._closed = False
        self._pictures: OrderedDict[tuple[str, str], None] = OrderedDict()

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences that wait for one."""
        return len(self._line)

    async def start(self) -> None:
        await asyncio.sleep(self._options.startup_s)
        if self._options.startup == "crash":
            _crash("The fake engine was told to crash at start.")
        if self._options.startup != "ok":
            raise EngineUnavailable("The fake engine was told to fail at start.")
        self._loop = asyncio.create_task(self._run())

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        count = _count_tokens(request, self._vision)
        limit, wanted = self._options.context_length, request.sampling.max_tokens
        if count.prompt_tokens + (wanted if wanted is not None else 1) > limit:
            asked = f" and {wanted} for the answer" if wanted is not None else ""
            raise ContextLengthExceeded(
                f"This model's context holds {limit} tokens. The prompt takes {count.prompt_tokens}{asked}. "
                "Shorten the prompt, send fewer or smaller pictures, or lower max_tokens.",
                param="messages",
            )
        return count

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        if self._loop is None or self._closed:
            raise EngineUnavailable("The engine is not running.")
        count = await self.count_tokens(request)
        room = self._options.context_length - count.prompt_tokens
        sequence = _Sequence(
            plan=_plan(request, self._options.script),
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
            _crash("The fake engine was told to crash.")
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
        logprob = None if sampling.logprobs is None else _logprob(token.text, sampling.logprobs)
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
    plan: _Plan
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


# --- what to answer --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    tokens: Iterator[Delta]
    """Each exactly one token."""
    reason: FinishReason = "stop"
    """When the tokens are spent."""
    reasoning_tokens: int = 0
    slow_s: float = 0.0
    error_at: int | None = None
    crash_at: int | None = None
    breaks: bool = False
    hangs: bool = False


@dataclass(slots=True)
class _Script:
    say: str | None = None
    think: str = ""
    length: int | None = None
    tools: list[tuple[str, str]] = field(default_factory=list)
    refuse: bool = False
    slow_s: float = 0.0
    error_at: int | None = None
    crash_at: int | None = None
    breaks: bool = False
    hang: bool = False


def _plan(request: EngineRequest, default_script: str) -> _Plan:
    text = _last_user_text(request)
    script, said = _script(text, "messages")
    if script == _Script():
        script, _ = _script(default_script, "options")
    calls = _calls(request, script)
    answer: Iterator[Delta]
    reason: FinishReason = "stop"
    if script.refuse:
        answer = (RefusalDelta(token) for token in tokenise(REFUSAL))
    elif calls:
        answer, reason = _tool_tokens(calls), "tool_calls"
    else:
        text = script.say if script.say is not None else _describe(request, said)
        answer = (TextDelta(token) for token in tokenise(text))
    thoughts = [ReasoningDelta(token) for token in tokenise(script.think)]
    tokens: Iterator[Delta] = itertools.chain(thoughts, answer)
    sampling = request.sampling
    if script.length is not None:
        tokens, reason = _exactly(script.length, tokens), "length"
    elif sampling.ignore_eos and reason == "stop":
        tokens = itertools.chain(tokens, _filler())
    elif sampling.min_tokens and reason == "stop":
        tokens = _at_least(sampling.min_tokens, tokens)
    faults = (script.slow_s, script.error_at, script.crash_at, script.breaks, script.hang)
    return _Plan(tokens, reason, len(thoughts), *faults)


def _filler() -> Iterator[Delta]:
    return (TextDelta(token) for token in itertools.cycle(tokenise(FILLER)))


def _exactly(count: int, tokens: Iterator[Delta]) -> Iterator[Delta]:
    return itertools.islice(itertools.chain(tokens, _filler()), count)


def _at_least(count: int, tokens: Iterator[Delta]) -> Iterator[Delta]:
    made = 0
    for token in tokens:
        made += 1
        yield token
    yield from itertools.islice(_filler(), max(0, count - made))


def _calls(request: EngineRequest, script: _Script) -> list[tuple[str, str]]:
    choice, known = request.tool_choice, [tool.name for tool in request.tools]
    if choice.mode == "none":
        return []
    for name, _ in script.tools:
        if name not in known:
            raise InvalidRequest(f"The script calls the tool {name!r}, which the request does not have.", param="tools")
    if not script.tools and choice.mode == "required" and known:
        return [((choice.names or tuple(known))[0], "{}")]
    return script.tools


def _tool_tokens(calls: list[tuple[str, str]]) -> Iterator[Delta]:
    """The id and the name of a call come with its first token, as dialects expect it of every engine."""
    for index, (name, arguments) in enumerate(calls):
        first, *rest = tokenise(arguments)
        yield ToolCallDelta(index, first, id=f"call_{index}", name=name)
        for token in rest:
            yield ToolCallDelta(index, token)


def _last_user_text(request: EngineRequest) -> str:
    for message in reversed(request.messages):
        if message.role == "user":
            return "".join(part.text for part in message.content if isinstance(part, Text))
    return ""


_COMMAND = re.compile(r"\[\[fake:\s*(\w+)\s*")


def _script(text: str, param: str) -> tuple[_Script, str]:
    """The commands in a text, and the text without them. Raises `InvalidRequest` for a command that is none."""
    script, plain, position = _Script(), "", 0
    while (found := _COMMAND.search(text, position)) is not None:
        plain += text[position : found.start()]
        name, start = found[1], found.end()
        try:
            end = _end_of_command(name, text, start)
            _apply(script, name, text[start:end].strip())
        except ValueError:
            raise InvalidRequest(
                f"[[fake: {name[:32]} ...]] is not a command of the fake engine, or its argument is wrong.", param=param
            ) from None
        position = end + 2
    return script, (plain + text[position:]).strip()


def _end_of_command(name: str, text: str, start: int) -> int:
    """Where `]]` closes the command; JSON may hold brackets of its own."""
    if name == "tool" and (brace := text.find("{", start)) >= 0:
        _, start = json.JSONDecoder().raw_decode(text, brace)
    return text.index("]]", start)


def _apply(script: _Script, name: str, argument: str) -> None:
    match name:
        case "say":
            script.say = argument
        case "think":
            script.think = argument
        case "length":
            script.length = int(argument)
        case "tool":
            tool, _, arguments = argument.partition(" ")
            script.tools.append((tool, json.dumps(json.loads(arguments or "{}"))))
        case "refuse":
            script.refuse = True
        case "slow":
            script.slow_s = float(argument)
        case "error":
            script.error_at = int(argument)
        case "crash":
            script.crash_at = int(argument)
        case "break":
            script.breaks = True
        case "hang":
            script.hang = True
        case _:
            raise ValueError(name)


def _crash(message: str) -> None:
    """Ends the process the hard way if it is an engine's own; in anybody else's raises `EngineFailed`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.startswith("sightline.engines.worker"):
        os._exit(CRASH_STATUS)
    raise EngineFailed(message)


# --- what it sees ----------------------------------------------------------------------------------------------------


def _describe(request: EngineRequest, said: str) -> str:
    pictures = [f"{i.width}x{i.height} {_colours(i.pixels)}" for i in request.images]
    if request.response_format.kind == "json_object":
        return json.dumps({"pictures": pictures, "you_said": said}, ensure_ascii=False)
    counted = {0: "no pictures", 1: "1 picture: "}.get(len(pictures), f"{len(pictures)} pictures: ")
    return f"I see {counted}{'; '.join(pictures)}. You said: {said}"


_QUARTERS = {"top left": (0, 0), "top right": (0, 1), "bottom left": (1, 0), "bottom right": (1, 1)}


def _colours(pixels: Pixels) -> str:
    """`mostly red (top left white, bottom right blue)`: the most frequent named colour, and where it is not."""
    names = _named(pixels)
    rows, columns = max(1, names.shape[0] // 2), max(1, names.shape[1] // 2)
    whole = _most(names)
    quarters = {
        where: _most(names[-rows:, :] if down else names[:rows, :], right, columns)
        for where, (down, right) in _QUARTERS.items()
    }
    others = ", ".join(f"{where} {colour}" for where, colour in quarters.items() if colour != whole)
    return f"mostly {whole}" + (f" ({others})" if others else "")


def _named(pixels: Pixels, side: int = 64) -> npt.NDArray[np.intp]:
    """The index in `COLOURS` of the nearest colour, on a grid of at most about `side` x `side` of the pixels."""
    steps = [max(1, size // side) for size in pixels.shape[:2]]
    grid = pixels[:: steps[0], :: steps[1]].astype(np.int32)
    distances = ((grid[:, :, None, :] - np.array(list(COLOURS.values()), np.int32)) ** 2).sum(axis=-1)
    nearest: npt.NDArray[np.intp] = distances.argmin(axis=-1)
    return nearest


def _most(names: npt.NDArray[np.intp], right: int = 0, columns: int | None = None) -> str:
    part = names if columns is None else names[:, -columns:] if right else names[:, :columns]
    return list(COLOURS)[int(np.bincount(part.ravel()).argmax())]


# --- what it costs ---------------------------------------------------------------------------------------------------


def _count_tokens(request: EngineRequest, vision: VisionBudget) -> TokenCount:
    """See the module: nothing here looks at what the pixels are, only at how many."""
    image_tokens = tuple(vision.tokens(image.served_width, image.served_height) for image in request.images)
    text_tokens = sum(map(_message_tokens, request.messages))
    for tool in request.tools:
        schema = json.dumps(tool.parameters, separators=(",", ":"))
        text_tokens += sum(len(tokenise(t)) for t in (tool.name, tool.description, schema))
    return TokenCount(text_tokens + sum(image_tokens) + 1, image_tokens)


def _message_tokens(message: Message[Image]) -> int:
    texts = [part.text for part in message.content if isinstance(part, Text)]
    texts += [text for call in message.tool_calls for text in (call.name, call.arguments)]
    return 2 + sum(len(tokenise(text)) for text in texts)


def _logprob(token: str, alternatives: int) -> TokenLogprob:
    """Made up, but a distribution: the token that was chosen has half of it, each alternative half of what is left."""
    chosen = TokenLogprob(token, math.log(0.5), tuple(token.encode()))
    others = [
        TokenLogprob(name := f"{token}~{rank}", rank * math.log(0.5), tuple(name.encode()))
        for rank in range(2, alternatives + 1)
    ]
    return replace(chosen, top=(chosen, *others)) if alternatives else chosen
