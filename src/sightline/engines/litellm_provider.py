"""Providers behind LiteLLM's SDK: OpenAI, Anthropic, Gemini, Bedrock, Azure and some hundred others.

LiteLLM knows each provider's wire and nothing else is left to it: no retries, no fallbacks, no dropped parameters, no
callbacks, no logs, nothing downloaded. It runs in a process of its own, which sees of the environment what the option
`env` names (`worker/environment.py`). A request is made as for any server with chat completions (`remote/body.py`) and
what comes back is read as such (`remote/answer.py`): that is the form in which LiteLLM takes and gives everything.

One thing it gives is not believed: when a provider's stream breaks off, LiteLLM 1.106 invents an end (`stop`) and a
usage. What the provider said is in `received_finish_reason` and `intermittent_finish_reason`; a stream without either
is a broken one.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import msgspec

from sightline.config import ModelConfig
from sightline.engines import FEATURES, EngineInfo
from sightline.engines.provider_pictures import Limits, limits_of, to_data_uris
from sightline.engines.remote.answer import Answer, with_pictures
from sightline.engines.remote.body import Part, Specials, to_body
from sightline.engines.remote.counting import Counter
from sightline.engines.remote.failures import to_error, to_refusal, too_long
from sightline.engines.remote.kinds import Kind
from sightline.engines.remote.options import AS_IS, RemoteOptions, read_budget, wrong
from sightline.engines.remote.sse import ServerEvent
from sightline.engines.remote.upstream import stopped
from sightline.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    InvalidRequest,
    SightlineError,
    UnsupportedFeature,
    UpstreamFailed,
)
from sightline.images.budget import VisionBudget
from sightline.images.published import published_budget
from sightline.types import Delta, EngineRequest, Event, Finish, Timing, TokenCount, Usage

log = logging.getLogger(__name__)

T = TypeVar("T")

_INSTALL = "pip install 'sightline[litellm]'"
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
_TALKATIVE = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "httpx", "httpcore", "openai", "botocore")
"""Loggers whose lines hold what people wrote, and URLs with keys in them."""
_FIELDS = frozenset(
    {
        "max_tokens", "seed", "top_k", "min_p", "min_tokens", "presence_penalty", "frequency_penalty",
        "repetition_penalty", "ignore_eos", "stop_token_ids", "logit_bias", "logprobs", "top_logprobs", "stop",
    }
)  # fmt: skip
"""What `to_body` may write beside the fields of every request."""
_PROVIDERS_OWN: Mapping[str, frozenset[str]] = {"anthropic": frozenset({"top_k"})}
"""Parameters that are no OpenAI parameters, and reach the provider by their own name."""
_FEATURES: Mapping[str, frozenset[str]] = {
    "seed": frozenset({"seed"}),
    "top_k": frozenset({"top_k"}),
    "penalties": frozenset({"presence_penalty", "frequency_penalty"}),
    "logit_bias": frozenset({"logit_bias"}),
    "logprobs": frozenset({"logprobs", "top_logprobs"}),
    "tools": frozenset({"tools", "tool_choice"}),
    "json_object": frozenset({"response_format"}),
    "json_schema": frozenset({"response_format"}),
}
"""Of `FEATURES`: the parameters each needs."""
_LATER_S = 1.0
"""After our own time limits come LiteLLM's, so that it is always ours that are met."""
_MOST_TEMPERATURE: Mapping[str, float] = {"anthropic": 1.0}
_MOST_STOPS: Mapping[str, int] = {"openai": 4, "azure": 4, "gemini": 5, "vertex_ai": 5}


class LiteLLMOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelConfig.options` of the engine `litellm`."""

    model: str
    """LiteLLM's name, with the provider: `anthropic/claude-sonnet-4-5`, `bedrock/anthropic.claude-3-haiku-...`."""
    env: tuple[str, ...] = ()
    """Names of the variables of this server's environment that LiteLLM's process gets: `ANTHROPIC_API_KEY`."""
    api_base: str | None = None
    """Another address than the provider's."""
    api_version: str | None = None
    """Azure's."""
    region: str | None = None
    """Bedrock's."""
    vertex_project: str | None = None
    vertex_location: str | None = None
    context_length: int | None = None
    """None: as LiteLLM's table of models has it."""
    budget: dict[str, Any] | str | None = None
    """As the engine `remote` has it. None: what the provider publishes of this model, else `as-is` if it can see."""
    max_pixels: int = 1_048_576
    """Of a picture that is served as it is."""
    max_images: int | None = None
    """None: the provider's published limit."""
    features: tuple[str, ...] | None = None
    """Of `FEATURES`. None: what LiteLLM's table has of this provider's parameters."""
    silence_s: float = 120.0
    total_s: float = 600.0

    def provider_arguments(self) -> dict[str, str]:
        """Of `litellm.acompletion`."""
        given = {
            "api_base": self.api_base,
            "api_version": self.api_version,
            "aws_region_name": self.region,
            "vertex_project": self.vertex_project,
            "vertex_location": self.vertex_location,
        }
        return {name: value for name, value in given.items() if value is not None}


def read_options(config: ModelConfig) -> LiteLLMOptions:
    """Raises `InvalidRequest` for what is unknown, of the wrong type or cannot be meant."""
    try:
        options = msgspec.convert(dict(config.options), LiteLLMOptions)
    except msgspec.ValidationError as error:
        raise wrong(f"{error}. Known: {', '.join(LiteLLMOptions.__struct_fields__)}.") from None
    if unknown := sorted(set(options.features or ()) - FEATURES):
        raise wrong(f"there is no feature {unknown[0]!r}. Known: {', '.join(sorted(FEATURES))}.")
    if not all(_VARIABLE.fullmatch(name) for name in options.env):
        # Which it is, is not repeated: it may be a key that stands where its name should.
        raise wrong("env takes names of environment variables, in capitals (ANTHROPIC_API_KEY), never their values.")
    if not (options.silence_s > 0 and options.total_s > 0 and options.max_pixels > 0):
        raise wrong("silence_s, total_s and max_pixels must be above 0.")
    return options


@dataclass(frozen=True, slots=True)
class _Provider:
    """What is known of the provider and its model once LiteLLM is there."""

    litellm: Any
    name: str
    kind: Kind
    info: EngineInfo
    limits: Limits
    budget: VisionBudget | None
    """None: what a picture costs is not known."""
    params: frozenset[str]


class LiteLLMEngine:
    """A provider's model. At most `config.max_concurrent` answers are asked for at once; more wait here, in order."""

    def __init__(self, config: ModelConfig) -> None:
        """Raises `InvalidRequest` for options that cannot be meant."""
        self._config = config
        self._options = read_options(config)
        self._turn = asyncio.Semaphore(config.max_concurrent)
        self._provider: _Provider | None = None
        self._scopes: set[asyncio.Timeout] = set()
        """Of whatever waits for the provider."""
        self._closed = False

    @property
    def info(self) -> EngineInfo:
        """Raises `EngineUnavailable` before `start` has returned."""
        return self._ready().info

    def _ready(self) -> _Provider:
        if self._closed:
            raise stopped()
        if self._provider is None:
            raise EngineUnavailable("The engine has not been started.")
        return self._provider

    async def start(self) -> None:
        """Imports LiteLLM and reads its tables. The provider is not asked: that would cost."""
        if self._closed:
            raise stopped()
        if unset := [name for name in self._options.env if name not in os.environ]:
            raise EngineUnavailable(f"The environment variable {unset[0]} (option env) is not set.")
        self._provider = await asyncio.to_thread(self._look_up, await asyncio.to_thread(_import_litellm))

    def _look_up(self, litellm: Any) -> _Provider:
        options = self._options
        try:
            name, provider, _, _ = litellm.get_llm_provider(options.model, api_base=options.api_base)
        except litellm.exceptions.BadRequestError:
            raise EngineUnavailable(
                f"LiteLLM knows no provider of {options.model!r}; write it as anthropic/claude-sonnet-4-5."
            ) from None
        missing = litellm.validate_environment(options.model, api_base=options.api_base)["missing_keys"]
        if missing:
            raise EngineUnavailable(
                f"{provider} needs {' and '.join(missing)}: set it in this server's environment, and name it in the "
                "option env."
            )
        table = _table_of(litellm, name, provider)
        supported = frozenset(litellm.get_supported_openai_params(name, provider) or ())
        params = supported | _PROVIDERS_OWN.get(provider, frozenset())
        kind = Kind(
            features=frozenset(f for f, needs in _FEATURES.items() if needs <= params),
            state="",
            is_ready=lambda reply, model: True,
            lacks=_FIELDS - params,
        )
        limits = limits_of(provider)
        budget, known = _budget(options, name, table)
        length = options.context_length or table.get("max_input_tokens")
        if not length:
            raise EngineUnavailable(
                f"LiteLLM does not know how much the context of {options.model!r} holds: set the option context_length."
            )
        info = EngineInfo(
            engine=self._config.engine,
            context_length=length,
            vision=budget,
            max_images=options.max_images or limits.max_images,
            features=kind.features if options.features is None else frozenset(options.features),
        )
        return _Provider(litellm, provider, kind, info, limits, budget if known else None, params)

    async def close(self) -> None:
        self._closed = True
        for scope in list(self._scopes):
            scope.reschedule(asyncio.get_running_loop().time())
        await asyncio.sleep(0)

    # --- counting ------------------------------------------------------------------------------------------------

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        """An estimate, and marked so: not every provider counts, and LiteLLM's own count is an estimate too."""
        self._check(request)
        return await self._counter().count(request)

    def _counter(self) -> Counter:
        provider = self._ready()
        return Counter(provider.kind, self._options.model, provider.budget, _NO_SPECIALS, _cannot_be_asked)

    def _check(self, request: EngineRequest) -> None:
        """What the provider cannot do is refused before it is called."""
        provider, sampling = self._ready(), request.sampling
        if not request.messages:
            raise InvalidRequest("'messages' must have 1 or more items.", param="messages")
        if request.images and provider.info.vision is None:
            raise InvalidRequest("This model cannot see pictures.", param="messages")
        if (sampling.max_tokens or 0) >= provider.info.context_length:
            raise too_long(provider.info.context_length)
        if sampling.temperature > (most := _MOST_TEMPERATURE.get(provider.name, 2.0)):
            raise InvalidRequest(f"'temperature' must be between 0 and {most:g} for this model.", param="temperature")
        if len(sampling.stop) > (stops := _MOST_STOPS.get(provider.name, 64)):
            raise InvalidRequest(f"This model takes at most {stops} stop strings.", param="stop")
        if provider.name not in ("openai", "azure") and any(message.name for message in request.messages):
            raise UnsupportedFeature(
                "This model's provider has no field for the name of who speaks; leave out 'name'.", param="messages"
            )
        for field, needed in (
            ("tools", bool(request.tools)),
            ("response_format", request.response_format.kind != "text"),
        ):
            if needed and field not in provider.params:
                raise UnsupportedFeature(f"This model's provider has no field for {field}.", param=field)

    # --- answering -----------------------------------------------------------------------------------------------

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        """As `Engine.generate`; raises `UpstreamFailed` where the provider broke."""
        self._check(request)
        deadline = asyncio.get_running_loop().time() + self._options.total_s
        await self._within(self._turn.acquire(), deadline)
        try:
            async with aclosing(self._answer(request, deadline)) as events:
                async for event in events:
                    yield event
        finally:
            self._turn.release()

    async def _answer(self, request: EngineRequest, deadline: float) -> AsyncGenerator[Event, None]:
        answer = Answer(request.request_id)
        arguments = await self._arguments(request, deadline)
        sent = time.perf_counter()
        first: float | None = None
        async with (
            self._stream(arguments, deadline) as stream,
            aclosing(self._deltas(answer, stream, deadline)) as deltas,
        ):
            async for delta in deltas:
                first = first or time.perf_counter()
                yield delta
        ended = time.perf_counter()
        timing = Timing(prefill_s=(first or ended) - sent, decode_s=ended - (first or ended))
        assert answer.reason is not None
        images = self._counter().image_tokens(request)
        usage = with_pictures(answer.usage or Usage(0, answer.num_tokens), images)
        yield Finish(answer.reason, usage, timing)

    async def _arguments(self, request: EngineRequest, deadline: float) -> dict[str, Any]:
        """Of `litellm.acompletion`."""
        provider = self._ready()
        uris = await to_data_uris(request.images, provider.limits)
        body = to_body(request, self._options.model, provider.kind, [Part(uri) for uri in uris], _NO_SPECIALS)
        for name in ("temperature", "top_p"):  # their default, and not every model has them, or both
            if body[name] == 1.0:
                del body[name]
            elif name not in provider.params:
                raise UnsupportedFeature(f"This model's provider has no field for {name}.", param=name)
        left = max(0.001, deadline - asyncio.get_running_loop().time())
        return {
            **body,
            **self._options.provider_arguments(),
            "timeout": left + _LATER_S,
            "max_retries": 0,
            "num_retries": 0,
            "drop_params": False,
            # Tools are our clients' own functions: they are passed on, never looked up at servers of LiteLLM's.
            "_skip_mcp_handler": True,
        }

    @asynccontextmanager
    async def _stream(self, arguments: Mapping[str, Any], deadline: float) -> AsyncGenerator[Any, None]:
        stream = await self._translated(self._ready().litellm.acompletion(**arguments), deadline)
        try:
            yield stream
        finally:
            await stream.aclose()

    async def _deltas(self, answer: Answer, stream: Any, deadline: float) -> AsyncGenerator[Delta, None]:
        """Until the stream ends. Raises `UpstreamFailed` when the provider has not said that it did."""
        while (chunk := await self._translated(anext(stream, None), deadline)) is not None:
            for delta in answer.take(ServerEvent(chunk.model_dump_json(exclude_none=True))):
                yield delta
        if stream.received_finish_reason is None and stream.intermittent_finish_reason is None:
            raise answer.broke_off()
        answer.take(ServerEvent("[DONE]"))

    async def _translated(self, awaitable: Awaitable[T], deadline: float) -> T:
        """Whatever LiteLLM raises is one of our errors."""
        try:
            return await self._within(awaitable, deadline)
        except SightlineError:
            raise
        except Exception as error:
            raise self._explained(error) from None

    async def _within(self, awaitable: Awaitable[T], deadline: float) -> T:
        """What is awaited, unless the provider is silent for too long, or no time is left, or we are closed."""
        loop = asyncio.get_running_loop()
        scope = asyncio.timeout_at(
            loop.time() if self._closed else min(loop.time() + self._options.silence_s, deadline)
        )
        try:
            async with scope:
                self._scopes.add(scope)
                try:
                    return await awaitable
                finally:
                    self._scopes.discard(scope)
        except TimeoutError:
            if self._closed:
                raise stopped() from None
            if loop.time() >= deadline:
                raise DeadlineExceeded(
                    f"The request took longer than the {self._options.total_s:g} s it may take."
                ) from None
            raise UpstreamFailed("The provider behind this model has not answered in time.") from None

    def _explained(self, error: Exception) -> SightlineError:
        provider = self._ready()
        meaning = next((m for m in _MEANINGS if isinstance(error, getattr(provider.litellm.exceptions, m.error))), None)
        if meaning is None:
            log.error("model %s: LiteLLM raised %s", self._config.name, type(error).__qualname__)
            return UpstreamFailed("The provider behind this model could not be asked, or broke.")
        if meaning.status in (401, 402, 403, 404):
            log.error("model %s: %s says %s: see the options model and env, and the account",
                      self._config.name, provider.name, meaning.error)  # fmt: skip
        if meaning.status in (401, 402, 403):
            # Not `EngineUnavailable`, at which the process would be started again.
            return UpstreamFailed("The provider behind this model does not let us in. Its operator has been told.")
        if meaning.status == 404:  # nor here
            return UpstreamFailed("The provider behind this model does not have it. Its operator has been told.")
        if meaning.code == "context_length_exceeded":
            return too_long(provider.info.context_length)
        if meaning.code == "content_policy_violation":
            return InvalidRequest("The provider behind this model refuses what this request says or shows.",
                                  param="messages", code=meaning.code)  # fmt: skip
        said = {"code": meaning.code} if meaning.code else None
        return to_error(to_refusal(meaning.status, said, _retry_after(error)), provider.info.context_length)


class _Meaning(NamedTuple):
    error: str
    """A class of `litellm.exceptions`."""
    status: int
    code: str | None = None


_MEANINGS = (  # a class before those above it
    _Meaning("ContextWindowExceededError", 400, "context_length_exceeded"),
    _Meaning("ContentPolicyViolationError", 400, "content_policy_violation"),
    _Meaning("UnsupportedParamsError", 400, "unsupported_parameter"),
    _Meaning("PaymentRequiredError", 402),
    _Meaning("BadRequestError", 400),
    _Meaning("UnprocessableEntityError", 422),
    _Meaning("AuthenticationError", 401),
    _Meaning("PermissionDeniedError", 403),
    _Meaning("NotFoundError", 404),
    _Meaning("RateLimitError", 429),
    _Meaning("MidStreamFallbackError", 502),
    _Meaning("ServiceUnavailableError", 503),
    _Meaning("BadGatewayError", 502),
    _Meaning("Timeout", 504),
    _Meaning("InternalServerError", 500),
    _Meaning("APIConnectionError", 502),
    _Meaning("APIError", 500),
)

_NO_SPECIALS = Specials(())
"""Providers keep what a client writes from becoming special tokens themselves."""


def _import_litellm() -> Any:
    """With everything off that it would do by itself. Raises `EngineUnavailable`."""
    try:
        litellm: Any = importlib.import_module("litellm")
    except ImportError as error:
        raise EngineUnavailable(
            f"The package litellm is not there, or cannot be imported ({error}): {_INSTALL}"
        ) from None
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    litellm.suppress_debug_info = True
    litellm.turn_off_message_logging = True
    litellm.drop_params = False
    litellm.modify_params = False
    litellm.num_retries = 0
    litellm.cache = None
    litellm.telemetry = False
    litellm.disable_hf_tokenizer_download = True
    for callbacks in ("callbacks", "input_callback", "success_callback", "failure_callback", "service_callback"):
        setattr(litellm, callbacks, [])
    return litellm


def _table_of(litellm: Any, model: str, provider: str) -> Mapping[str, Any]:
    """The row of LiteLLM's table of models; empty for one that it does not know."""
    try:
        return dict(litellm.get_model_info(model, custom_llm_provider=provider))
    except Exception:  # its class has changed between versions
        return {}


def _budget(options: LiteLLMOptions, model: str, table: Mapping[str, Any]) -> tuple[VisionBudget | None, bool]:
    """How the model sees, and whether it is known what that costs."""
    wanted = options.budget
    if wanted is None and (published := published_budget(model)) is not None:
        return published, True
    if wanted is None and not table.get("supports_vision"):
        return None, True
    remote = RemoteOptions(base_url="http://localhost", budget=wanted or AS_IS, max_pixels=options.max_pixels)
    return read_budget(remote), wanted not in (None, AS_IS)


def _retry_after(error: Exception) -> str | None:
    for headers in (
        getattr(error, "litellm_response_headers", None),
        getattr(getattr(error, "response", None), "headers", None),
    ):
        if headers is not None and (value := headers.get("retry-after")):
            return str(value)
    return None


async def _cannot_be_asked(path: str, body: bytes) -> bytes:
    raise AssertionError("a provider is never asked to count")
