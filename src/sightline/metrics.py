"""What is counted, under which names. `Observed` is the only place that counts a stream.

Every label comes from a closed set (configured model names, routes' templates, stages, outcomes, error codes): a client
cannot make a new time series. Durations are seconds, sizes bytes, pixels or tokens; the names say which.

What is counted with every request or token keeps its time series at hand (`_OfModel`, `HttpEnded`): looking one up by
its labels costs more than counting.
"""

from __future__ import annotations

import asyncio
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import cast

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from sightline import __version__
from sightline.errors import SightlineError
from sightline.types import Event, Finish

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second time series beside each, which nobody reads
REGISTRY = CollectorRegistry(auto_describe=True)

_LAG_SAMPLE_S = 0.05
"""How often the event loop's lateness is measured."""
_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_STEP = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
_BYTES = tuple(4.0**k * 1024 for k in range(8))
_PIXELS = tuple(4.0**k * 1024 for k in range(10))
_TOKENS = (16.0, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192.0)


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    return Counter(f"sightline_{name}", meaning, labels, registry=REGISTRY)


def _gauge(name: str, meaning: str, *labels: str) -> Gauge:
    return Gauge(f"sightline_{name}", meaning, labels, registry=REGISTRY)


def _histogram(name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(f"sightline_{name}", meaning, labels, buckets=buckets, registry=REGISTRY)


class _Tally:
    """How often a number of seconds was in each bucket. Counted by one thread alone, which needs no lock."""

    __slots__ = ("buckets", "counts", "total_s")

    def __init__(self, buckets: tuple[float, ...]) -> None:
        self.buckets = buckets
        self.counts = [0] * (len(buckets) + 1)
        self.total_s = 0.0

    def see(self, seconds: float) -> None:
        self.counts[bisect_left(self.buckets, seconds)] += 1
        self.total_s += seconds


class _Tallies(Collector):
    """A histogram by model for what comes with every token: the library's takes ten times as long to count."""

    _labelnames = ("model",)
    """Under the library's own name, by which its collectors are asked for them."""

    def __init__(self, name: str, meaning: str, buckets: tuple[float, ...]) -> None:
        self._name, self._meaning, self._buckets = f"sightline_{name}", meaning, buckets
        self._of_model: dict[str, _Tally] = {}
        REGISTRY.register(self)

    def of(self, model: str) -> _Tally:
        return self._of_model.setdefault(model, _Tally(self._buckets))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._meaning, labels=self._labelnames)
        edges = [*map(floatToGoString, self._buckets), "+Inf"]
        for model, tally in list(self._of_model.items()):
            family.add_metric([model], list(zip(edges, accumulate(tally.counts), strict=True)), sum_value=tally.total_s)
        yield family


BUILD = _gauge("build_info", "1; its label says which version runs.", "version")
BUILD.labels(__version__).set(1)
ProcessCollector(registry=REGISTRY)

HTTP_REQUESTS = _counter(
    "http_requests",
    "HTTP requests by route (its template), method, class of status (`2xx`) and API. `none`: no such route, or no "
    "answer was sent; dialect `inside`: lines of batches, which the server puts to itself.",
    "route",
    "method",
    "status",
    "dialect",
)
HTTP_REQUEST_SECONDS = _histogram(
    "http_request_seconds", "From a request's head to the last byte of its answer.", _LATENCY, "route"
)
HTTP_REQUEST_BYTES = _counter("http_request_bytes", "Bodies of requests, as far as they were read.", "route")
HTTP_RESPONSE_BYTES = _counter("http_response_bytes", "Bodies of answers.", "route")
HTTP_IN_FLIGHT = _gauge("http_requests_in_flight", "HTTP requests that are being answered, streams among them.")
HTTP_CONNECTIONS = _gauge("http_connections", "Open connections of clients, TLS handshakes among them.")
HTTP_CUT = _counter(
    "http_connections_cut",
    "Connections that the server ended, by reason: `malformed`, `overlong` or `unsupported` requests, a `slow` head, "
    "a `stalled` reader, `too_many`, `too_many_of_one` address, a failed `handshake`. They are in no other count.",
    "reason",
)

REQUESTS = _counter("requests", "Requests by how they ended: ok, cancelled or an error's class.", "model", "outcome")
REQUEST_SECONDS = _histogram("request_seconds", "From admission to the last event.", _LATENCY, "model")
TTFT_SECONDS = _histogram("ttft_seconds", "From admission to the first event.", _LATENCY, "model")
INTER_TOKEN_SECONDS = _Tallies("inter_token_seconds", "Between deltas, by token.", _STEP)
QUEUE_SECONDS = _histogram("queue_seconds", "Waiting for an engine slot.", _LATENCY, "model")
ENGINE_STAGE_SECONDS = _histogram(
    "engine_stage_seconds", "Inside the engine: queue, encode, prefill, decode.", _LATENCY, "model", "stage"
)

PROMPT_TOKENS = _counter("prompt_tokens", "Prompt tokens, pictures included.", "model")
IMAGE_TOKENS = _counter("image_tokens", "Prompt tokens that are pictures.", "model")
CACHED_TOKENS = _counter("cached_tokens", "Prompt tokens whose attention blocks were at hand.", "model")
COMPLETION_TOKENS = _counter("completion_tokens", "Tokens generated.", "model")

IMAGE_STAGE_SECONDS = _histogram("image_stage_seconds", "A picture's way in: fetch, decode, resize.", _LATENCY, "stage")
IMAGE_BYTES = _histogram("image_bytes", "Size of picture files.", _BYTES)
IMAGE_PIXELS = _histogram("image_pixels", "Original pixels of pictures.", _PIXELS)
IMAGE_SERVED_PIXELS = _histogram("image_served_pixels", "Pixels of pictures as engines receive them.", _PIXELS)
IMAGES_SCALED_TO_FIT = _counter("images_scaled_to_fit", "Pictures made smaller because the context was full.", "model")
IMAGE_CACHE = _counter(
    "image_cache", "Pictures by where their pixels came from: hit, miss, shared (decoded just then).", "result"
)
IMAGE_CACHE_EVICTIONS = _counter("image_cache_evictions", "Decoded pictures that made room for others.")
IMAGE_CACHE_BYTES = _gauge("image_cache_bytes", "Pixels of the decoded pictures that are kept.")
IMAGE_TOKEN_MISMATCHES = _counter(
    "image_token_mismatches", "Requests whose engine counted its pictures' tokens otherwise: a bug.", "model"
)
TOKENS_PER_IMAGE = _histogram("tokens_per_image", "Tokens a picture was served as.", _TOKENS, "model")
IMAGES_CACHED = _counter("images_cached", "Pictures whose embedding was at hand.", "model")

AUDIO_SECONDS = _counter("audio_seconds", "Length of the recordings that were written down.", "model")
AUDIO_DECODE_SECONDS = _histogram("audio_decode_seconds", "From a recording's bytes to its samples.", _LATENCY)

DECODERS = _gauge("decoders", "Processes that decode pictures.")
DECODERS_BUSY = _gauge("decoders_busy", "Of them, those that have a picture in work.")
DECODERS_WAITING = _gauge("decoders_waiting", "Pictures that wait for a decoder.")

MODEL_STATE = _gauge(
    "model_state", "1 for the state that the model is in: unloaded, loading, ready or failed.", "model", "state"
)
SLOTS = _gauge("slots", "Sequences that may run at once.", "model")
RUNNING = _gauge("requests_running", "Requests that hold an engine slot.", "model")
WAITING = _gauge("requests_waiting", "Requests that wait for a slot.", "model")
PREDICTED_WAIT_SECONDS = _gauge(
    "predicted_wait_seconds",
    "How long a request would wait that came now, by the queue and the measured rate; 0: not at all.",
    "model",
)
ENGINE_PROCESS_RSS_BYTES = _gauge(
    "engine_process_resident_memory_bytes",
    "Memory that the engine's process holds, pages that it shares with others included; 0: it has none of its own.",
    "model",
)
ENGINE_PROCESS_CPU_SECONDS = _gauge(
    "engine_process_cpu_seconds", "Processor time of the engine's process that runs now.", "model"
)
KV_BLOCKS = _gauge(
    "kv_blocks", "Blocks of keys and values that the engine has; 0: it has none, or does not tell.", "model"
)
KV_BLOCKS_USED = _gauge(
    "kv_blocks_used",
    "Of them, those of requests under way. The rest is free, or kept as prefixes until needed.",
    "model",
)
KV_BLOCKS_CACHED = _gauge("kv_blocks_cached", "Of them, those that only keep a prefix for a later prompt.", "model")
EMBEDDING_CACHE_BYTES = _gauge("embedding_cache_bytes", "Embeddings of pictures that the engine keeps.", "model")
ENGINE_RESTARTS = _gauge("engine_restarts", "Times the engine's process was started again.", "model")
TRIES = _counter("tries", "Times a model was turned to, by what came of it, as for requests.", "model", "outcome")
RETRIES = _counter("retries", "Tries that were made once more on the same engine.", "model")
FALLBACKS = _counter("fallbacks", "Requests that went on to another model, by the one that was left.", "model")
BREAKER = _gauge("breaker_open", "Whether the engine is left alone: 0 no, 0.5 for all but a probe, 1 yes.", "model")
JOBS_UNFINISHED = _gauge(
    "jobs_unfinished", "Batches and analyses in the queue that have not ended, whichever server does them."
)
JOBS_WAITING = _gauge("jobs_requests_waiting", "Lines of batches, and analyses, that are neither done nor under way.")
JOBS_RUNNING = _gauge("jobs_requests_running", "Lines of batches, and analyses, that a server or worker has in hand.")
JOBS_OLDEST_SECONDS = _gauge("jobs_oldest_seconds", "Age of the oldest batch or analysis that has not ended; 0: none.")
# Under the names that dashboards of other services know, and without labels: of the simple service (/analyze) alone.
VLM_REQUESTS = Counter("vlm_requests", "Requests to the simple service, however they ended.", registry=REGISTRY)
VLM_REQUEST_LATENCY_SECONDS = Histogram(
    "vlm_request_latency_seconds", "A whole request to the simple service.", buckets=_LATENCY, registry=REGISTRY
)
VLM_IMAGE_SIZE_BYTES = Histogram(
    "vlm_image_size_bytes", "Size of the picture files sent to the simple service.", buckets=_BYTES, registry=REGISTRY
)
BODIES_BYTES = _gauge("bodies_bytes", "Of requests' bodies that are held in memory.")
EVENT_LOOP_TASKS = _gauge("event_loop_tasks", "Tasks that have begun and not ended; steady under a steady load.")
EVENT_LOOP_LAG_SECONDS = _histogram("event_loop_lag_seconds", "How late the event loop woke from a short sleep.", _STEP)


def render(registry: Collector = REGISTRY) -> tuple[bytes, str]:
    """All of it in Prometheus' text format, and its media type. `registry`: whatever was collected elsewhere."""
    return generate_latest(cast(CollectorRegistry, registry)), CONTENT_TYPE_LATEST


class Observed:
    """One stream of a model: counts its events as they come: time to first, between tokens, tokens, stages."""

    __slots__ = ("_clock", "_last", "_of_model", "_started")

    def __init__(
        self, model: str, *, started: float | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`model` must be a configured name (it becomes a label). `started` is when the request was admitted, on
        `clock` (default: now)."""
        self._of_model = _of_model(model)
        self._clock = clock
        self._started = clock() if started is None else started
        self._last: float | None = None
        """When the last delta came."""

    def see(self, event: Event, *, is_first: bool = False) -> None:
        """With each event once, when it has come."""
        now, last = self._clock(), self._last
        if is_first:
            self._of_model.ttft.observe(now - self._started)
        if isinstance(event, Finish):
            self._of_model.count(event)
            return
        if last is not None and event.num_tokens:
            self._of_model.inter_token.see((now - last) / event.num_tokens)
        self._last = now


class _OfModel:
    """The time series of one model's streams."""

    def __init__(self, model: str) -> None:
        self.ttft = TTFT_SECONDS.labels(model)
        self.inter_token = INTER_TOKEN_SECONDS.of(model)
        self._prompt_tokens = PROMPT_TOKENS.labels(model)
        self._image_tokens = IMAGE_TOKENS.labels(model)
        self._cached_tokens = CACHED_TOKENS.labels(model)
        self._completion_tokens = COMPLETION_TOKENS.labels(model)
        self._images_cached = IMAGES_CACHED.labels(model)
        self._tokens_per_image = TOKENS_PER_IMAGE.labels(model)
        self._stages = [ENGINE_STAGE_SECONDS.labels(model, s) for s in ("queue", "encode", "prefill", "decode")]

    def count(self, finish: Finish) -> None:
        usage, timing = finish.usage, finish.timing
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._image_tokens.inc(sum(usage.image_tokens))
        self._cached_tokens.inc(usage.cached_tokens)
        self._completion_tokens.inc(usage.completion_tokens)
        self._images_cached.inc(sum(usage.images_cached))
        for tokens in usage.image_tokens:
            self._tokens_per_image.observe(tokens)
        stages = (timing.queue_s, timing.encode_s, timing.prefill_s, timing.decode_s)
        for stage, seconds in zip(self._stages, stages, strict=True):
            stage.observe(seconds)


@cache
def _of_model(model: str) -> _OfModel:
    """Of a configured name: there are few."""
    return _OfModel(model)


# --- HTTP ------------------------------------------------------------------------------------------------------------

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class HttpEnded:
    """The time series of HTTP requests that are alike."""

    def __init__(self, route: str, method: str, status: str, dialect: str) -> None:
        self._requests = HTTP_REQUESTS.labels(route, method, status, dialect)
        self._seconds = HTTP_REQUEST_SECONDS.labels(route)
        self._bytes_in = HTTP_REQUEST_BYTES.labels(route)
        self._bytes_out = HTTP_RESPONSE_BYTES.labels(route)

    def observe(self, seconds: float, bytes_in: int, bytes_out: int) -> None:
        self._requests.inc()
        self._seconds.observe(seconds)
        self._bytes_in.inc(bytes_in)
        self._bytes_out.inc(bytes_out)


_http_ended = cache(HttpEnded)


def http_ended(route: str, method: str, status: int | None, dialect: str) -> HttpEnded:
    """Where a request that has ended is counted. `route` is a template and `dialect` an API's name; method and status
    may be anything."""
    known = method if method in _METHODS else "other"
    in_class = f"{status // 100}xx" if status is not None and 100 <= status < 600 else "none"
    return _http_ended(route, known, in_class, dialect)


# --- processes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProcessUse:
    rss_bytes: float = 0.0
    cpu_s: float = 0.0
    """User and system, of all its threads, not of its children."""


def process_use(pid: int | None) -> ProcessUse:
    """What a process uses now, by Linux's `/proc/PID/stat` (proc(5)); nought of one that is not there."""
    try:
        # The name in parentheses may hold spaces and parentheses of its own.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return ProcessUse(int(fields[21]) * _PAGE_BYTES, (int(fields[11]) + int(fields[12])) / _TICKS)
    except (OSError, IndexError, ValueError):
        return ProcessUse()


_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


def outcome(error: BaseException | None) -> str:
    """The `outcome` label of a request: `ok`, `cancelled`, an error's class name, or `bug`."""
    match error:
        case None:
            return "ok"
        case SightlineError():
            return type(error).__name__
        case Exception():
            return "bug"
        case _:
            return "cancelled"


def watch_event_loop() -> asyncio.Task[None]:
    """Has it measured, until it is cancelled."""
    loop = asyncio.get_running_loop()
    EVENT_LOOP_TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))
    return loop.create_task(_measure_lag())


async def _measure_lag() -> None:
    """What every client would feel if something blocked the loop."""
    while True:
        asleep = time.perf_counter()
        await asyncio.sleep(_LAG_SAMPLE_S)
        EVENT_LOOP_LAG_SECONDS.observe(max(0.0, time.perf_counter() - asleep - _LAG_SAMPLE_S))
