"""What is counted, under which names. `observe` is the only place that counts a stream.

Every label comes from a closed set (configured model names, stages, outcomes, error codes): a client cannot make a new
time series. Durations are seconds, sizes bytes, pixels or tokens; the names say which.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sightline.errors import SightlineError
from sightline.types import Event, Finish

REGISTRY = CollectorRegistry(auto_describe=True)

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


REQUESTS = _counter("requests", "Requests by how they ended: ok, cancelled or an error's class.", "model", "outcome")
REQUEST_SECONDS = _histogram("request_seconds", "From admission to the last event.", _LATENCY, "model")
TTFT_SECONDS = _histogram("ttft_seconds", "From admission to the first event.", _LATENCY, "model")
INTER_TOKEN_SECONDS = _histogram("inter_token_seconds", "Between deltas, by token.", _STEP, "model")
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

RUNNING = _gauge("requests_running", "Requests that hold an engine slot.", "model")
WAITING = _gauge("requests_waiting", "Requests that wait for a slot.", "model")
ENGINE_RESTARTS = _gauge("engine_restarts", "Times the engine's process was started again.", "model")
TRIES = _counter("tries", "Times a model was turned to, by what came of it, as for requests.", "model", "outcome")
RETRIES = _counter("retries", "Tries that were made once more on the same engine.", "model")
FALLBACKS = _counter("fallbacks", "Requests that went on to another model, by the one that was left.", "model")
BREAKER = _gauge("breaker_open", "Whether the engine is left alone: 0 no, 0.5 for all but a probe, 1 yes.", "model")
# Under the names that dashboards of other services know, and without labels: of the simple service (/analyze) alone.
VLM_REQUESTS = Counter("vlm_requests", "Requests to the simple service, however they ended.", registry=REGISTRY)
VLM_REQUEST_LATENCY_SECONDS = Histogram(
    "vlm_request_latency_seconds", "A whole request to the simple service.", buckets=_LATENCY, registry=REGISTRY
)
VLM_IMAGE_SIZE_BYTES = Histogram(
    "vlm_image_size_bytes", "Size of the picture files sent to the simple service.", buckets=_BYTES, registry=REGISTRY
)
EVENT_LOOP_LAG_SECONDS = _histogram("event_loop_lag_seconds", "How late the event loop woke from a short sleep.", _STEP)


def render() -> tuple[bytes, str]:
    """The whole registry in Prometheus' text format, and its media type."""
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST


async def observe(
    events: AsyncGenerator[Event, None],
    model: str,
    *,
    started: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> AsyncGenerator[Event, None]:
    """Passes an engine's events on and counts them: time to first, between tokens, tokens, stages.

    `model` must be a configured name (it becomes a label). `started` is when the request was admitted, on `clock`
    (default: now).
    """
    last = started = clock() if started is None else started
    first = True
    async with aclosing(events):
        async for event in events:
            now = clock()
            if first:
                TTFT_SECONDS.labels(model).observe(now - started)
                first = False
            if isinstance(event, Finish):
                _count(event, model)
            else:
                if last != started and event.num_tokens:
                    INTER_TOKEN_SECONDS.labels(model).observe((now - last) / event.num_tokens)
                last = now
            yield event


def _count(finish: Finish, model: str) -> None:
    usage, timing = finish.usage, finish.timing
    PROMPT_TOKENS.labels(model).inc(usage.prompt_tokens)
    IMAGE_TOKENS.labels(model).inc(sum(usage.image_tokens))
    CACHED_TOKENS.labels(model).inc(usage.cached_tokens)
    COMPLETION_TOKENS.labels(model).inc(usage.completion_tokens)
    IMAGES_CACHED.labels(model).inc(sum(usage.images_cached))
    for tokens in usage.image_tokens:
        TOKENS_PER_IMAGE.labels(model).observe(tokens)
    stages = {
        "queue": timing.queue_s, "encode": timing.encode_s, "prefill": timing.prefill_s, "decode": timing.decode_s,
    }  # fmt: skip
    for stage, seconds in stages.items():
        ENGINE_STAGE_SECONDS.labels(model, stage).observe(seconds)


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
