"""The engine: who waits, what is asked of the server, how it ends."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any, get_args
from urllib.parse import quote

import msgspec

from sightline.config import ModelConfig
from sightline.engines import EngineInfo, EngineState, Work
from sightline.engines.remote.answer import Answer, joined, with_pictures
from sightline.engines.remote.body import Part, Specials, encode, spliced, to_body, to_completion_body
from sightline.engines.remote.counting import Counter
from sightline.engines.remote.embedding import FIELDS, MAX_REPLY_BYTES, read_listed, to_embedding_body
from sightline.engines.remote.failures import Refusal, in_success, read_refusal, to_error, too_long
from sightline.engines.remote.options import (
    AS_IS,
    RemoteOptions,
    RemoteWork,
    read_budget,
    read_key,
    read_options,
    read_specials,
)
from sightline.engines.remote.pictures import Held, Pictures
from sightline.engines.remote.sse import MalformedStream, ServerEvents
from sightline.engines.remote.upstream import Address, Incoming, Limits, Upstream, stopped, too_late
from sightline.errors import (
    CapacityError,
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineError,
    EngineUnavailable,
    InvalidRequest,
    SightlineError,
    UpstreamFailed,
)
from sightline.types import Delta, EmbeddingRequest, Embeddings, EngineRequest, Event, Finish, Timing, TokenCount, Usage

log = logging.getLogger(__name__)

_POLL_S = 0.25
_POLL_TIMEOUT_S = 5.0
_TELL_S = 2.0
"""For which a server that is not ready is waited for without a word."""
_LAST_MOMENT_S = 0.1
"""Of a request's time: what fails then has failed for want of time."""
_SPARE_CONNECTIONS = 8
"""For counting and looking, beside those that answer."""


class RemoteEngine:
    """A model behind an OpenAI-compatible server. See the package.

    At most `config.max_concurrent` answers are asked for at once; more wait here, in the order of arrival.
    """

    def __init__(
        self, config: ModelConfig, *, options: RemoteOptions | None = None, address: Address | None = None
    ) -> None:
        """`options` and `address` are for engines that start the server themselves.

        Raises `InvalidRequest` for options that cannot be meant.
        """
        self._config = config
        self._options = options or read_options(config, RemoteOptions)
        self._kind = self._options.row
        self._model = self._options.model or config.known_as
        self._budget = read_budget(self._options)
        self._key = read_key(self._options)
        self._specials = Specials(read_specials(self._options))
        self._address = address or Address(self._options.base_url)
        self._pictures = Pictures(self._options.picture_cache_bytes)
        self._held = Held()
        self._turn = asyncio.Semaphore(config.max_concurrent)
        known = None if self._options.budget == AS_IS else self._budget
        self._counter = Counter(self._kind, self._model, known, self._specials, self._ask)
        self._info: EngineInfo | None = None
        self._upstream: Upstream | None = None
        self._closed = False

    @property
    def info(self) -> EngineInfo:
        """Raises `EngineUnavailable` before `start` has returned."""
        if self._info is None:
            raise EngineUnavailable("The engine has not been started.")
        return self._info

    @property
    def state(self) -> EngineState:
        if self._closed:
            return "failed"
        return "unloaded" if self._info is None else "ready"

    async def start(self) -> None:
        """Waits for the server to have the model, for at most `config.start_timeout_s`."""
        if self._closed:
            raise stopped()
        try:
            self.open()
            state = await self._until_ready()
            self._info = self._read_info(state)
        except BaseException:
            await self.close()
            raise

    def open(self) -> Upstream:
        """What this engine speaks through; made at first use. Raises `EngineUnavailable`, after `close` too."""
        if self._closed:
            raise stopped()
        if self._upstream is None:
            o = self._options
            try:
                self._upstream = Upstream(
                    self._address,
                    Limits(o.connect_s, o.silence_s, o.total_s),
                    key=self._key,
                    connections=self._config.max_concurrent + _SPARE_CONNECTIONS,
                    ca_file=o.ca_file,
                )
            except OSError as error:
                log.error("model %s: the option ca_file cannot be used: %s", self._config.name, error)
                raise EngineUnavailable("The option ca_file names no file of certificates.") from None
        return self._upstream

    async def close(self) -> None:
        self._closed = True
        if self._upstream is not None:
            await self._upstream.close()

    # --- is it there ---------------------------------------------------------------------------------------------

    async def _until_ready(self) -> Any:
        deadline = time.monotonic() + self._config.start_timeout_s
        tell_at = time.monotonic() + _TELL_S
        problem: object = "it does not have the model yet"
        while True:
            try:
                if (state := await self.look()) is not None:
                    return state
            except (EngineError, CapacityError) as error:  # it may also be silent
                problem = error
            if self._closed:
                raise stopped()
            if time.monotonic() > deadline:
                log.error("model %s: its server is not ready: %s", self._config.name, problem)
                raise EngineUnavailable(
                    f"The server behind this model was not ready within {self._config.start_timeout_s:g} s: {problem}"
                )
            if time.monotonic() > tell_at:
                tell_at = deadline + 1  # once
                log.warning(
                    "model %s: %s is waited for, for %g s at most: %s", self._config.name, self._options.base_url,
                    self._config.start_timeout_s, problem,
                )  # fmt: skip
            await asyncio.sleep(_POLL_S)

    async def look(self) -> Any:
        """What the server says of the model; None if it cannot be asked yet. Raises what keeps it from saying so."""
        upstream = self.open()
        deadline = asyncio.get_running_loop().time() + _POLL_TIMEOUT_S
        if self._kind.health is not None and (await upstream.get(self._kind.health, deadline)).status != 200:
            return None
        reply = await upstream.get(self._kind.state.format(model=quote(self._model, safe="")), deadline)
        if reply.status in (401, 403):
            raise EngineUnavailable(f"it does not let us in (status {reply.status}); see the option api_key_env.")
        if reply.status != 200:
            return None
        try:
            state = msgspec.json.decode(reply.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise UpstreamFailed("it answers with what is no JSON; see the options base_url and kind.") from None
        return state if self._kind.is_ready(state, self._model) else None

    def _read_info(self, state: Any) -> EngineInfo:
        told = self._kind.context_length(state, self._model)
        length = self._options.context_length or (told if isinstance(told, int) and told > 0 else None)
        if length is None:
            raise EngineUnavailable(
                f"The server behind the model {self._config.name!r} does not tell how much its context holds: "
                "set the option context_length."
            )
        features = self._options.features
        return EngineInfo(
            engine=self._config.engine,
            context_length=length,
            vision=self._budget,
            max_images=self._options.max_images,
            features=self._kind.features if features is None else frozenset(features),
            work=self._read_work(state),
        )

    def _read_work(self, state: Any) -> frozenset[Work]:
        if self._options.work is not None:
            return frozenset(self._options.work)
        told = self._kind.told_work(state, self._model)
        if isinstance(told, list):
            return frozenset(work for work in get_args(RemoteWork) if work in told)
        return self._kind.work

    # --- counting ------------------------------------------------------------------------------------------------

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        """Exact where the server tells, else an estimate and marked so."""
        self._check(request)
        count = await self._counter.count(request)
        wanted = request.sampling.max_tokens
        if count.exact and count.prompt_tokens + (1 if wanted is None else wanted) > self.info.context_length:
            raise too_long(self.info.context_length, request.param)
        return count

    async def _ask(self, path: str, body: bytes) -> bytes:
        upstream = self.open()
        reply = await upstream.post(path, body, upstream.deadline())
        if reply.status != 200:
            raise self._to_error(read_refusal(reply.status, reply.body, reply.headers.get("retry-after"), _FIELDS))
        return reply.body

    def _check(self, request: EngineRequest) -> None:
        if self._info is None or self._closed:
            raise stopped() if self._closed else EngineUnavailable("The engine has not been started.")
        if not request.messages and request.prompt is None:
            raise InvalidRequest("'messages' must have 1 or more items.", param="messages")
        if request.images and self._budget is None:
            raise InvalidRequest("This model cannot see pictures.", param="messages")

    # --- vectors -------------------------------------------------------------------------------------------------

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """As `Embeds.embed`; raises `UpstreamFailed` where the server broke."""
        if self._info is None:
            raise stopped() if self._closed else EngineUnavailable("The engine has not been started.")
        upstream = self.open()
        deadline = upstream.deadline()
        wanted = to_embedding_body(request, self._model, self._specials, ids=self._kind.checks_ids)
        wanted["encoding_format"] = "base64"
        await upstream.within(self._turn.acquire(), deadline)
        try:
            async with upstream.open("POST", "embeddings", [encode(wanted)], deadline) as incoming:
                if incoming.status != 200:
                    raise await self._refused(incoming, FIELDS, "input")
                reply = await incoming.whole(MAX_REPLY_BYTES)
        finally:
            self._turn.release()
        return await asyncio.to_thread(read_listed, reply, request)

    # --- answering -----------------------------------------------------------------------------------------------

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        """As `Engine.generate`; raises `UpstreamFailed` where the server broke, `DeadlineExceeded` for want of time.

        The server is told in how many seconds nobody will wait for the answer any more.
        """
        self._check(request)
        deadline = self.open().deadline(request.timeout_s)
        begun = False
        with self._in_time(request, lambda: begun):
            await self.open().within(self._turn.acquire(), deadline)
            try:
                await self._check_room(request)
                for by_name in (True, False) if self._named(request) else (False,):
                    try:
                        async with aclosing(self._answer(request, deadline, by_name=by_name)) as events:
                            async for event in events:
                                begun = True
                                yield event
                        if by_name:
                            self._held.hit()
                        return
                    except SightlineError as error:
                        if begun or not by_name or not isinstance(error, InvalidRequest | UpstreamFailed):
                            raise await self._explained(error, request) from None
                        # It may not hold a picture any more. Which errors say so has changed between versions.
                        self._held.missed(self._names(request))
            finally:
                self._turn.release()

    @contextmanager
    def _in_time(self, request: EngineRequest, begun: Callable[[], bool]) -> Iterator[None]:
        """Around an answer: what fails for want of time says so."""
        loop = asyncio.get_running_loop()
        wanted_until = math.inf if request.timeout_s is None else loop.time() + request.timeout_s
        try:
            yield
        except (EngineError, DeadlineExceeded) as error:
            if loop.time() >= wanted_until - _LAST_MOMENT_S:  # a server that was told stops just before we do
                raise too_late() from None
            if isinstance(error, DeadlineExceeded) and not begun():
                raise UpstreamFailed("The server behind this model has not answered in time.") from None
            raise

    async def _answer(self, request: EngineRequest, deadline: float, *, by_name: bool) -> AsyncGenerator[Event, None]:
        kind, sampling = self._kind, request.sampling
        stops = sampling.stop if kind.stops == "here" else ()
        answer = Answer(request.request_id, stops=stops, min_tokens=sampling.min_tokens)
        body = await self._body(request, by_name=by_name)
        sent = time.perf_counter()
        first: float | None = None
        path = "chat/completions" if request.prompt is None else "completions"
        async with self.open().open("POST", path, body, deadline, keep=not kind.hangs_up) as incoming:
            del body
            await self._expect_stream(incoming, request.param)
            events = ServerEvents()
            while not answer.done:
                deltas, problem = _taken(answer, events, await incoming.piece())
                for delta in deltas:
                    first = first or time.perf_counter()
                    yield delta
                if problem is not None:
                    raise problem
            if not answer.cut:
                await incoming.ended()
        if kind.uuids:
            self._held.add(self._names(request))
        ended = time.perf_counter()
        timing = Timing(prefill_s=(first or ended) - sent, decode_s=ended - (first or ended))
        assert answer.reason is not None
        yield Finish(answer.reason, await self._usage(request, answer), timing, answer.stop_sequence)

    async def _body(self, request: EngineRequest, *, by_name: bool) -> list[bytes]:
        """In pieces."""
        if request.prompt is not None:
            room = max(1, self.info.context_length - (await self._counter.count(request)).prompt_tokens)
            return [encode(to_completion_body(request, self._model, self._kind, self._specials, room))]
        names = self._names(request)
        whole = [not (by_name and name in self._held) for name in names]  # decided once: others forget meanwhile
        wanted = [image for image, is_whole in zip(request.images, whole, strict=True) if is_whole]
        async with self._pictures.encoded(wanted, request.tenant) as data_uris:
            nonce = secrets.token_hex(16)
            marks = [f"{nonce}-{number}" for number in range(len(wanted))]
            uris = iter(marks)
            parts = [
                Part(next(uris) if is_whole else None, name or None)
                for name, is_whole in zip(names, whole, strict=True)
            ]
            body = to_body(request, self._model, self._kind, parts, self._specials)
            return spliced(body, list(zip(marks, data_uris, strict=True)))

    def _names(self, request: EngineRequest) -> list[str]:
        """What each picture is called there; empty where names are not known."""
        return [self._held.name(i, request.tenant) if self._kind.uuids else "" for i in request.images]

    def _named(self, request: EngineRequest) -> bool:
        return any(name in self._held for name in self._names(request))

    def forget_pictures(self) -> None:
        """The server has been started anew and holds none."""
        self._held.clear()

    async def _expect_stream(self, incoming: Incoming, param: str) -> None:
        """Raises what a reply means that is no stream."""
        media_type = incoming.headers.get("content-type", "").partition(";")[0].strip().lower()
        if incoming.status == 200 and media_type == "text/event-stream":
            return
        raise await self._refused(incoming, _FIELDS, param)

    async def _refused(self, incoming: Incoming, fields: frozenset[str], param: str) -> SightlineError:
        """What a reply means that is not what was asked for. `param`: what is too long, where something is."""
        body = await incoming.whole()
        refusal = read_refusal(incoming.status, body, incoming.headers.get("retry-after"), fields)
        return self._to_error(refusal if incoming.status >= 400 else in_success(refusal), param)

    def _to_error(self, refusal: Refusal, param: str = "messages") -> SightlineError:
        if refusal.status in (401, 403, 404):
            log.error("model %s: its server answers with status %d: see the options base_url, model and api_key_env",
                      self._config.name, refusal.status)  # fmt: skip
        elif refusal.status >= 500 and refusal.status != 503:
            log.warning("model %s: its server failed with status %d", self._config.name, refusal.status)
        return to_error(refusal, self._info.context_length if self._info is not None else None, param)

    async def _check_room(self, request: EngineRequest) -> None:
        """Raises `ContextLengthExceeded` where a server would cut the answer shorter. It is asked to count only where
        that may be so."""
        wanted = request.sampling.max_tokens
        if self._kind.shortens and wanted and self._counter.no_more_than(request) + wanted > self.info.context_length:
            await self.count_tokens(request)

    async def _explained(self, error: SightlineError, request: EngineRequest) -> SightlineError:
        """Not every server has a code for a prompt that is too long; then counting tells."""
        if type(error) is InvalidRequest and self._kind.counts is not None:
            try:
                await self.count_tokens(request)
            except ContextLengthExceeded as exceeded:
                return exceeded
            except SightlineError:
                pass
        return error

    async def _usage(self, request: EngineRequest, answer: Answer) -> Usage:
        images = self._counter.image_tokens(request)
        if answer.usage is not None:
            return with_pictures(answer.usage, images)
        # We closed the stream at a stop, or it has not told: tokens of the answer as they came, the prompt's by asking.
        usage = Usage(0, answer.num_tokens)
        with suppress(SightlineError):
            count = await self._counter.count(request)
            return with_pictures(usage, count.image_tokens, count.prompt_tokens)
        return with_pictures(usage, images, sum(images))


_FIELDS = frozenset(
    {
        "messages", "prompt", "model", "temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "stop",
        "logprobs",
        "top_logprobs", "logit_bias", "presence_penalty", "frequency_penalty", "repetition_penalty", "top_k", "min_p",
        "min_tokens", "ignore_eos", "stop_token_ids", "tools", "tool_choice", "parallel_tool_calls",
        "response_format",
    }
)  # fmt: skip
"""What an error of the server may name, because a client may have written it."""


def _taken(answer: Answer, events: ServerEvents, piece: bytes | None) -> tuple[list[Delta], SightlineError | None]:
    """What a piece of the stream says (None: there is no more), and what is wrong behind that.

    Words that came together go on together, as one delta: each costs everybody behind as much as many do.
    """
    deltas: list[Delta] = []
    problem: SightlineError | None = None
    if piece is None:
        return deltas, answer.broke_off()
    try:
        for event in events.feed(piece):
            deltas += answer.take(event)
            if answer.done:
                break
    except SightlineError as error:
        problem = error
    except MalformedStream as error:
        log.warning("an upstream's stream is malformed: %s", error)
        problem = UpstreamFailed("The server behind this model sent what is no answer.")
    return joined(deltas), problem
