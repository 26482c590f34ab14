"""The engine: how the model is loaded, what is asked of Ollama, how it ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec

from sightline.config import ModelConfig
from sightline.engines import EngineInfo, EngineState, Work
from sightline.engines.ollama.native import KIND, MARKERS, PLACE, Lines, Placing, to_request
from sightline.engines.ollama.options import OllamaOptions, read_options
from sightline.engines.ollama.server import OllamaServer, Progress, Shown, lines, refusal
from sightline.engines.remote.answer import Answer, with_pictures
from sightline.engines.remote.body import Part, Specials, encode
from sightline.engines.remote.counting import Counter
from sightline.engines.remote.embedding import MAX_REPLY_BYTES, read_ollama, to_embedding_body
from sightline.engines.remote.failures import to_error, too_long
from sightline.engines.remote.options import AS_IS, read_budget, read_key, read_specials
from sightline.engines.remote.pictures import Pictures, blank
from sightline.engines.remote.upstream import Address, Incoming, Limits, Upstream, stopped
from sightline.errors import DeadlineExceeded, EngineUnavailable, InvalidRequest, SightlineError
from sightline.types import Delta, EmbeddingRequest, Embeddings, EngineRequest, Event, Finish, Timing, TokenCount, Usage

log = logging.getLogger(__name__)

_POLL_S = 0.25
_POLL_TIMEOUT_S = 5.0
_TELL_S = 2.0
"""For which an Ollama that is silent is waited for without a word."""
_SPARE_CONNECTIONS = 8
"""For loading and looking, beside those that answer."""
_LOGPROBS_SINCE = (0, 12, 11)
"""An older Ollama takes the field for nothing."""
_LOG_PULL_EVERY = 0.1


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What is known once the model is in memory."""

    info: EngineInfo
    specials: Specials
    placing: Placing


class OllamaEngine:
    """A model behind Ollama. An `Engine`; also `Supervised`, as far as its state goes: Ollama is not ours to restart.

    At most `config.max_concurrent` answers are asked for at once; more wait here, in the order of arrival.
    """

    restarts = 0

    def __init__(self, config: ModelConfig) -> None:
        """Raises `InvalidRequest` for options that cannot be meant."""
        self._config = config
        self._options = read_options(config)
        self._model = self._options.model or config.known_as
        self._key = read_key(self._options)
        self._pictures = Pictures()
        self._turn = asyncio.Semaphore(config.max_concurrent)
        self._loaded: _Loaded | None = None
        self._upstream: Upstream | None = None
        self._closed = False
        self.progress: float | None = None
        """Of a pull: the part of the bytes that are known of which Ollama has; None: none is under way."""

    @property
    def info(self) -> EngineInfo:
        """Raises `EngineUnavailable` before `start` has returned."""
        return self._ready().info

    @property
    def state(self) -> EngineState:
        if self._closed:
            return "failed"
        if self._loaded is not None:
            return "ready"
        return "unloaded" if self._upstream is None else "loading"

    def _ready(self) -> _Loaded:
        if self._closed:
            raise stopped()
        if self._loaded is None:
            raise EngineUnavailable("The engine has not been started.")
        return self._loaded

    # --- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Waits for Ollama, has it pull the model where that is wanted and needed, and load it."""
        if self._closed:
            raise stopped()
        try:
            self._upstream = self._open()
            server = OllamaServer(self._upstream)
            version = await self._until_up(server)
            shown = await self._find(server)
            self._loaded = await self._load(server, shown, version)
        except EngineUnavailable:
            await self.close()
            raise
        except SightlineError as error:
            await self.close()
            raise EngineUnavailable(f"Ollama could not be made ready: {error.message}") from error
        except BaseException:
            await self.close()
            raise

    def _open(self) -> Upstream:
        o = self._options
        try:
            return Upstream(
                Address(o.base_url),
                Limits(o.connect_s, o.silence_s, o.total_s),
                key=self._key,
                connections=self._config.max_concurrent + _SPARE_CONNECTIONS,
                ca_file=o.ca_file,
            )
        except OSError as error:
            log.error("model %s: the option ca_file cannot be used: %s", self._config.name, error)
            raise EngineUnavailable("The option ca_file names no file of certificates.") from None

    async def _until_up(self, server: OllamaServer) -> tuple[int, ...]:
        """Its version, once it answers; waits at most `config.start_timeout_s`."""
        loop = asyncio.get_running_loop()
        give_up, tell_at = loop.time() + self._config.start_timeout_s, loop.time() + _TELL_S
        while True:
            try:
                return await server.version(loop.time() + _POLL_TIMEOUT_S)
            except SightlineError as error:
                if self._closed:
                    raise stopped() from None
                problem = "It is silent." if isinstance(error, DeadlineExceeded) else error.message
            if loop.time() > give_up:
                raise EngineUnavailable(
                    f"Ollama did not answer within {self._config.start_timeout_s:g} s: {problem} "
                    "Is it running (ollama serve), and is the option base_url right?"
                )
            if loop.time() > tell_at:
                tell_at = give_up + 1  # once
                log.warning(
                    "model %s: Ollama at %s is waited for, for %g s at most: %s", self._config.name,
                    self._options.base_url, self._config.start_timeout_s, problem,
                )  # fmt: skip
            await asyncio.sleep(_POLL_S)

    async def _find(self, server: OllamaServer) -> Shown:
        """The model on Ollama's disk. Raises `EngineUnavailable` when it is not there, or can do nothing for us."""
        shown = await server.show(self._model)
        if shown is None and self._options.pull:
            try:
                await self._pull(server, self._told)
            finally:
                self.progress = None
            shown = await server.show(self._model)
        if shown is None:
            there = ", ".join((await server.models())[:10]) or "none"
            raise EngineUnavailable(
                f"Ollama does not have the model {self._model!r}. Pull it (`ollama pull {self._model}`, or the option "
                f"pull=true), or name another with the option model. It has: {there}."
            )
        if shown.in_cloud and not self._options.allow_cloud:
            raise EngineUnavailable(
                f"Ollama sends requests for {self._model!r} to its maker's cloud. If pictures may leave this machine, "
                "set the option allow_cloud=true."
            )
        if not _work(shown):
            raise EngineUnavailable(
                f"The model {self._model!r} can neither chat nor embed; it can: {_listed(shown.capabilities)}."
            )
        if self._options.think and shown.capabilities and "thinking" not in shown.capabilities:
            raise EngineUnavailable(f"The model {self._model!r} cannot think: leave out the option think.")
        return shown

    def _told(self, progress: float) -> None:
        self.progress = progress

    async def pull(self, told: Callable[[float], None]) -> None:
        """As `Pulls.pull`: onto Ollama's disk."""
        upstream = self._open()
        try:
            server = OllamaServer(upstream)
            await self._until_up(server)
            await self._pull(server, told)
        finally:
            await upstream.close()

    async def _pull(self, server: OllamaServer, tell: Callable[[float], None]) -> None:
        layers: dict[str, tuple[int, int]] = {}
        logged = -1.0

        def told(progress: Progress) -> None:
            nonlocal logged
            if progress.digest and progress.total > 0:
                layers[progress.digest] = (min(progress.completed, progress.total), progress.total)
            done, total = (sum(numbers) for numbers in zip(*layers.values(), strict=True)) if layers else (0, 0)
            part = done / total if total else 0.0
            tell(part)
            if part >= logged + _LOG_PULL_EVERY or part < logged or progress.status == "success":
                logged = part
                log.info("model %s: pulling %s: %.0f %% of %.2f GB", self._config.name, self._model,
                         100 * part, total / 1e9)  # fmt: skip

        await server.pull(self._model, told)

    async def _load(self, server: OllamaServer, shown: Shown, version: tuple[int, ...]) -> _Loaded:
        if "messages" in _work(shown):  # one that only embeds is loaded with the first text
            await server.load(self._model, self._fixed(self._options.context_length))
        running = {_full(model.name): model.context_length for model in await server.running()}
        length = running.get(_full(self._model)) or self._options.context_length or shown.context_length
        if not length:
            raise EngineUnavailable("Ollama does not tell how much this model's context holds: set context_length.")
        sees = "vision" in shown.capabilities
        placing = await self._ask_placing(server) if sees else "after"
        features = set(KIND.features)
        if shown.capabilities and "tools" not in shown.capabilities:
            features -= {"tools"}
        if (0, 0, 0) < version < _LOGPROBS_SINCE:
            features -= {"logprobs"}
        chosen = self._options.features
        info = EngineInfo(
            engine=self._config.engine,
            context_length=length,
            vision=_budget(self._options) if sees else None,
            max_images=self._options.max_images,
            features=frozenset(features if chosen is None else chosen),
            work=_work(shown) if self._options.work is None else frozenset(self._options.work),
        )
        if shown.specials is None:
            log.warning("model %s: Ollama does not tell this model's special tokens: name them in the option "
                        "special_tokens, or clients can write them", self._config.name)  # fmt: skip
        specials = (*MARKERS, *(shown.specials or ()), *read_specials(self._options))
        return _Loaded(info, Specials(specials), placing)

    async def _ask_placing(self, server: OllamaServer) -> Placing:
        """Has a prompt made of a picture between two words, which no model runs, and looks where the picture is."""
        message = {"role": "user", "content": f"one{PLACE}two", "images": [_bare(blank(32, 32))]}
        fields = self._fixed(self._options.context_length)
        fields["options"] |= {"num_predict": 1}
        prompt = await server.rendered({"model": self._model, "messages": [message], **fields})
        if prompt is None or PLACE not in prompt:
            return "inline"
        log.info("model %s: Ollama puts its pictures after the text of their message", self._config.name)
        return "after"

    def _fixed(self, context_length: int | None) -> dict[str, Any]:
        """Fields of every request."""
        options = {} if context_length is None else {"num_ctx": context_length}
        fields: dict[str, Any] = {"options": {**options, **self._options.runner_options}, "shift": False}
        for name in ("keep_alive", "think"):
            if (value := getattr(self._options, name)) is not None:
                fields[name] = value
        return fields

    async def close(self) -> None:
        """Ollama itself goes on; the model leaves its memory now only with the option `unload_at_close`."""
        was_loaded, self._closed = self._loaded is not None and not self._closed, True
        if self._upstream is not None:
            await self._upstream.close()
        if was_loaded and self._options.unload_at_close:
            await self._unload()

    async def _unload(self) -> None:
        upstream = self._open()
        try:
            await OllamaServer(upstream).unload(self._model)
        except SightlineError as error:
            log.warning("model %s: Ollama was not told to unload it: %s", self._config.name, error)
        finally:
            await upstream.close()

    # --- vectors -------------------------------------------------------------------------------------------------

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """As `Embeds.embed`; raises `UpstreamFailed` where Ollama broke."""
        loaded = self._ready()
        assert self._upstream is not None
        deadline = self._upstream.deadline()
        wanted = to_embedding_body(request, self._model, loaded.specials, ids=False)
        fields = {name: value for name, value in self._fixed(self._options.context_length).items() if name != "think"}
        body = encode({**fields, **wanted, "truncate": False})
        await self._upstream.within(self._turn.acquire(), deadline)
        try:
            async with self._upstream.open("POST", "api/embed", [body], deadline) as incoming:
                if incoming.status != 200:
                    raise await self._refused(incoming)
                reply = await incoming.whole(MAX_REPLY_BYTES)
        finally:
            self._turn.release()
        return await asyncio.to_thread(read_ollama, reply, request)

    # --- counting ------------------------------------------------------------------------------------------------

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        """An estimate, and marked so: Ollama has no way to count. Raises `ContextLengthExceeded` for an answer that
        alone would be longer than the context."""
        self._check(request)
        return await self._counter().count(request)

    def _counter(self) -> Counter:
        loaded = self._ready()
        budget = None if self._options.budget in (None, AS_IS) else loaded.info.vision
        return Counter(KIND, self._model, budget, loaded.specials, _cannot_be_asked)

    def _check(self, request: EngineRequest) -> None:
        info = self._ready().info
        if not request.messages and request.prompt is None:
            raise InvalidRequest("'messages' must have 1 or more items.", param="messages")
        if request.images and info.vision is None:
            raise InvalidRequest("This model cannot see pictures.", param="messages")
        if (request.sampling.max_tokens or 0) >= info.context_length:
            raise too_long(info.context_length, request.param)

    # --- answering -----------------------------------------------------------------------------------------------

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        """As `Engine.generate`; raises `UpstreamFailed` where Ollama broke."""
        self._check(request)
        assert self._upstream is not None
        deadline = self._upstream.deadline()
        await self._upstream.within(self._turn.acquire(), deadline)
        begun = False
        try:
            async with aclosing(self._answer(request, self._upstream, deadline)) as events:
                async for event in events:
                    begun = True
                    yield event
        except InvalidRequest as error:
            raise (error if begun else await self._explained(error, request)) from None
        finally:
            self._turn.release()

    async def _answer(self, request: EngineRequest, upstream: Upstream, deadline: float) -> AsyncGenerator[Event, None]:
        answer = Answer(request.request_id, stops=request.sampling.stop)
        body = await self._body(request)
        sent = time.perf_counter()
        first: float | None = None
        path = "api/chat" if request.prompt is None else "api/generate"
        async with upstream.open("POST", path, [body], deadline) as incoming:
            del body
            if incoming.status != 200:
                raise await self._refused(incoming)
            async with aclosing(_deltas(answer, incoming)) as deltas:
                async for delta in deltas:
                    first = first or time.perf_counter()
                    yield delta
        ended = time.perf_counter()
        timing = Timing(prefill_s=(first or ended) - sent, decode_s=ended - (first or ended))
        assert answer.reason is not None
        yield Finish(answer.reason, await self._usage(request, answer), timing, answer.stop_sequence)

    async def _body(self, request: EngineRequest) -> bytes:
        loaded = self._ready()
        async with self._pictures.encoded(request.images, request.tenant) as uris:
            parts = [Part(uri.decode()) for uri in uris]
            fields = to_request(request, self._model, parts, loaded.specials, loaded.placing)
            fixed = self._fixed(loaded.info.context_length)
            if request.prompt is not None:
                fixed.pop("think", None)
            body = {**fields, **fixed, "options": {**fixed["options"], **fields["options"]}}
            return await asyncio.to_thread(encode, body) if parts else encode(body)

    async def _refused(self, incoming: Incoming) -> SightlineError:
        said = await refusal(incoming)
        if said.status in (401, 403, 404):
            log.error("model %s: Ollama answers with status %d: is the model still there? See the options base_url and "
                      "model", self._config.name, said.status)  # fmt: skip
        elif said.status >= 500 and said.status != 503:
            log.warning("model %s: Ollama failed with status %d", self._config.name, said.status)
        if said.status < 400:
            said = msgspec.structs.replace(said, status=502)
        return to_error(said, self._ready().info.context_length)

    async def _explained(self, error: InvalidRequest, request: EngineRequest) -> SightlineError:
        """Ollama has no code for a prompt that is too long: a refusal of one that seems to be so is taken for that."""
        length = self._ready().info.context_length
        if type(error) is InvalidRequest and (await self._counter().count(request)).prompt_tokens >= length:
            return too_long(length, request.param)
        return error

    async def _usage(self, request: EngineRequest, answer: Answer) -> Usage:
        """As Ollama counted. It has not when a stop string ended the answer: then the prompt's tokens are estimated."""
        images = self._counter().image_tokens(request)
        if answer.usage is not None:
            return with_pictures(answer.usage, images)
        count = await self._counter().count(request)
        return with_pictures(Usage(0, answer.num_tokens), images, count.prompt_tokens)


async def _deltas(answer: Answer, incoming: Incoming) -> AsyncGenerator[Delta, None]:
    """Until the answer is done. Raises `UpstreamFailed` when the stream is not whole."""
    to_events = Lines().to_events
    async with aclosing(lines(incoming)) as incoming_lines:
        async for line in incoming_lines:
            for event in to_events(line):
                for delta in answer.take(event):
                    yield delta
                if answer.done:
                    return
    raise answer.broke_off()


async def _cannot_be_asked(path: str, body: bytes) -> bytes:
    raise AssertionError("Ollama is never asked to count")


def _work(shown: Shown) -> frozenset[Work]:
    """An older Ollama tells no capabilities: then it chats."""
    works: dict[str, frozenset[Work]] = {
        "completion": frozenset({"messages", "completions"}),
        "embedding": frozenset({"embeddings"}),
    }
    said = shown.capabilities or {"completion"}
    return frozenset(work for capability in works.keys() & said for work in works[capability])


def _budget(options: OllamaOptions) -> Any:
    """Ollama does not tell how a model sees: as they are, where the operator does not say either."""
    return read_budget(options) or read_budget(msgspec.structs.replace(options, budget=AS_IS))


def _full(model: str) -> str:
    """With the tag that Ollama takes where there is none."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


def _bare(data_uri: str) -> str:
    return data_uri.partition(",")[2]


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
