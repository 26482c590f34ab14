"""Where the time of a request went, as OpenTelemetry spans: the one place that knows that library.

    POST /v1/chat/completions            the HTTP request (`serving`)
      chat peek                          what is asked of a model (`inference`), by the GenAI conventions
        try peek@0                       one for each model that was turned to
          prepare                        tokens counted, pictures understood
            picture.fetch, picture.decode, picture.resize
          queue                          until it had its slot
          generate                       the engine's stream
            engine.queue, engine.encode, engine.prefill, engine.decode

Attributes are names, counts, sizes and seconds; never content, nor the message of an exception, which may quote it.
What an engine only tells when it is over becomes spans with times in the past (`stage`).

Nothing of the library is imported, and each function here is one comparison, until `start` was called with an endpoint.
It is an extra: `pip install 'sightline[otel]'`.

Conventions: https://opentelemetry.io/docs/specs/semconv/http/http-spans/ and .../gen-ai/gen-ai-spans/; W3C's Trace
Context for what comes in and goes on (`traceparent`, `tracestate`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

from sightline import __version__
from sightline.config import Tracing
from sightline.errors import InvalidRequest
from sightline.metrics import outcome
from sightline.types import ChatRequest, Finish

if TYPE_CHECKING:
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import SpanKind, Tracer

Attribute: TypeAlias = str | bool | int | float | list[str] | None
"""None: not known, and left out."""

_NS: Final = 1_000_000_000
_MAX_TEXT: Final = 256
"""Characters of a name that a client chose."""
_MAX_BATCH: Final = 512
_PROPAGATED: Final = ("traceparent", "tracestate")

_tracer: Tracer | None = None
_inference: ContextVar[Inference | None] = ContextVar("sightline.inference", default=None)


# --- life ------------------------------------------------------------------------------------------------------------


def verify(tracing: Tracing) -> None:
    """Raises `InvalidRequest` when traces are wanted and cannot be made."""
    if tracing.endpoint is not None and find_spec("opentelemetry.exporter.otlp.proto.http") is None:
        raise InvalidRequest(
            f"Traces are to be sent to {tracing.endpoint}, and OpenTelemetry is not installed. Install it with: "
            "pip install 'sightline[otel]'; or leave out tracing.otlp_endpoint and OTEL_EXPORTER_OTLP_ENDPOINT.",
            param="tracing.otlp_endpoint",
        )


def start(tracing: Tracing) -> Callable[[], None]:
    """From now on spans are made and sent, from a thread of the library's own. Returns what ends that and sends what
    is left, which takes `Tracing.flush_s` at most and blocks.

    One at a time in a process. Without an endpoint nothing begins. Raises as `verify`.
    """
    global _tracer  # like the registry of metrics, one for the process
    if tracing.endpoint is None:
        return _nothing
    verify(tracing)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    resource = Resource.create({"service.name": tracing.name, "service.version": __version__})
    sampler = ParentBased(TraceIdRatioBased(tracing.sample))
    provider = TracerProvider(resource=resource, sampler=sampler, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=tracing.endpoint, timeout=tracing.flush_s)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=tracing.every_s * 1000))
    _tracer = provider.get_tracer("sightline", __version__)

    def stop() -> None:
        global _tracer
        _tracer = None
        provider.force_flush(int(tracing.flush_s * 1000))
        provider.shutdown()

    return stop


def _nothing() -> None:
    pass


def active() -> bool:
    """Whether spans are made at all."""
    return _tracer is not None


# --- spans -----------------------------------------------------------------------------------------------------------


class Span:
    """`with` it: what is inside becomes part of it, also in tasks that are begun there. What leaves it as an error
    marks it as failed, by the error's class."""

    def __init__(self, tracer: Tracer, name: str, attributes: Mapping[str, Attribute], **more: Any) -> None:
        """`more`: of `Tracer.start_as_current_span`."""
        self._scope = tracer.start_as_current_span(
            name, attributes=_known(attributes), record_exception=False, set_status_on_exception=False, **more
        )
        self._span: OtelSpan | None = None
        self._began_ns = time.time_ns()

    def __enter__(self) -> Self:
        self._span = self._scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.fail(outcome(error))
        self._scope.__exit__(kind, error, trace)

    def rename(self, name: str) -> None:
        assert self._span is not None
        self._span.update_name(name)

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        assert self._span is not None
        for key, value in _known(attributes).items():
            self._span.set_attribute(key, value)

    def fail(self, error_type: str) -> None:
        """`error_type`: an error's class or a status code. A client that left is no error of ours (OpenTelemetry's
        conventions for HTTP leave the status of such a span unset)."""
        from opentelemetry.trace import Status, StatusCode

        assert self._span is not None
        self._span.set_attribute("error.type", error_type)
        if error_type != "cancelled":
            self._span.set_status(Status(StatusCode.ERROR))


def span(name: str, /, **attributes: Attribute) -> AbstractContextManager[object]:
    """Around a stage. Names of attributes are written with two underscores for a dot."""
    if _tracer is None:
        return _OFF
    return Span(_tracer, name, {key.replace("__", "."): value for key, value in attributes.items()})


_OFF: Final = nullcontext()


def stage(name: str, seconds: float, *, ended_s_ago: float = 0.0, **attributes: Attribute) -> None:
    """A stage that took so long and is over already. One that took no time did not happen."""
    if _tracer is None or seconds <= 0:
        return
    end = time.time_ns() - int(ended_s_ago * _NS)
    named = {key.replace("__", "."): value for key, value in attributes.items()}
    _tracer.start_span(name, start_time=end - int(seconds * _NS), attributes=_known(named)).end(end)


def trace_id() -> str | None:
    """Of the span that this is part of: 32 hexadecimal digits; None: no traces are made."""
    if _tracer is None:
        return None
    from opentelemetry.trace import format_trace_id, get_current_span

    context = get_current_span().get_span_context()
    return format_trace_id(context.trace_id) if context.is_valid else None


def outgoing() -> dict[str, str]:
    """Headers that make what another server does a part of this."""
    if _tracer is None:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return headers


@contextmanager
def continued(headers: Mapping[str, str]) -> Iterator[None]:
    """What is inside is a part of what another process does, which told its `outgoing` headers."""
    if _tracer is None or not headers:
        yield
        return
    from opentelemetry import context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    token = context.attach(TraceContextTextMapPropagator().extract(headers))
    try:
        yield
    finally:
        context.detach(token)


# --- HTTP ------------------------------------------------------------------------------------------------------------


def serving(method: str, scheme: str, headers: Iterable[tuple[bytes, bytes]]) -> Span:
    """A request to us, part of the trace that its headers name. Only while `active`."""
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    assert _tracer is not None, "asked before"
    carrier: dict[str, list[str]] = {}
    for name, value in headers:
        if (key := name.decode("latin-1").lower()) in _PROPAGATED:
            carrier.setdefault(key, []).append(value.decode("latin-1"))
    return Span(
        _tracer,
        method,
        {"http.request.method": method, "url.scheme": scheme},
        kind=SpanKind.SERVER,
        context=TraceContextTextMapPropagator().extract(carrier),
    )


# --- what is asked of a model ----------------------------------------------------------------------------------------


class Inference(Span):
    """`gen_ai.operation.name model`: counts what comes of it, of all its choices together."""

    def __init__(self, tracer: Tracer, operation: str, model: str, attributes: Mapping[str, Attribute]) -> None:
        shown = model[:_MAX_TEXT]
        named: dict[str, Attribute] = {"gen_ai.operation.name": operation, "gen_ai.request.model": shown}
        named |= {"gen_ai.provider.name": "sightline"}
        super().__init__(tracer, f"{operation} {shown}", {**named, **attributes}, kind=_internal())
        self._token: Any = None
        self._began = time.perf_counter()
        self._first = False
        self._finishes: list[Finish] = []

    def __enter__(self) -> Self:
        super().__enter__()
        self._token = _inference.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _inference.reset(self._token)
        super().__exit__(kind, error, trace)

    def first_event(self) -> None:
        if not self._first:
            self._first = True
            assert self._span is not None
            self._span.add_event("gen_ai.first_token")
            self.set({"gen_ai.response.time_to_first_chunk": time.perf_counter() - self._began})

    def finish(self, finish: Finish, model: str) -> None:
        self._finishes.append(finish)
        usages = [each.usage for each in self._finishes]
        self.set(
            {
                "gen_ai.response.model": model,
                "gen_ai.response.finish_reasons": [each.reason for each in self._finishes],
                "gen_ai.usage.input_tokens": usages[0].prompt_tokens,
                "gen_ai.usage.output_tokens": sum(usage.completion_tokens for usage in usages),
                "gen_ai.usage.cache_read.input_tokens": min(usage.cached_tokens for usage in usages),
                "sightline.image_tokens": sum(usages[0].image_tokens),
                "sightline.images": len(usages[0].image_tokens),
            }
        )


def chat(request: ChatRequest) -> AbstractContextManager[object]:
    """Around all that becomes of a request for an answer in events."""
    if _tracer is None:
        return _OFF
    sampling = request.sampling
    return Inference(
        _tracer,
        "chat" if request.prompt is None else "text_completion",
        request.model,
        {
            "gen_ai.request.max_tokens": sampling.max_tokens,
            "gen_ai.request.temperature": float(sampling.temperature),
            "gen_ai.request.top_p": float(sampling.top_p),
            "gen_ai.request.seed": sampling.seed,
            "gen_ai.request.choice.count": request.n if request.n > 1 else None,
            "sightline.images": len(request.images),
        },
    )


def call(work: str, model: str) -> AbstractContextManager[object]:
    """Around other work of a model: `embeddings`, `transcription`."""
    return _OFF if _tracer is None else Inference(_tracer, work, model, {})


def used(input_tokens: int) -> None:
    """What a call took in: texts to embed."""
    if _tracer is not None and (inference := _inference.get()) is not None:
        inference.set({"gen_ai.usage.input_tokens": input_tokens})


def first_event() -> None:
    """The engine has begun to answer."""
    if _tracer is not None and (inference := _inference.get()) is not None:
        inference.first_event()


def finished(finish: Finish, model: str) -> None:
    """A choice is over, just now: its usage, and the engine's stages by the times that it tells. `model` answered."""
    if _tracer is None:
        return
    if (inference := _inference.get()) is not None:
        inference.finish(finish, model)
    timing = finish.timing
    after = 0.0
    for name in ("decode", "prefill", "encode", "queue"):
        seconds: float = getattr(timing, f"{name}_s")
        stage(f"engine.{name}", seconds, ended_s_ago=after)
        after += seconds


def _internal() -> SpanKind:
    from opentelemetry.trace import SpanKind

    return SpanKind.INTERNAL


def _known(attributes: Mapping[str, Attribute]) -> dict[str, Any]:
    return {key: value for key, value in attributes.items() if value is not None}
