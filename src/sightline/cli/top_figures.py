"""From what a server's `/metrics` told at two moments to the figures that `sightline top` shows. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]


class Scrape:
    """What a server told at a moment."""

    def __init__(self, text: str, at: float, models: Mapping[str, Any] | None = None) -> None:
        """`text`: in Prometheus' text format. `at`: seconds on any clock that only goes forwards. `models`: what
        `/v1/models` answers, if it does. Raises `ValueError` for a text of another format."""
        self.at = at
        self.models = {} if models is None else {model["id"]: model["sightline"] for model in models["data"]}
        self._samples: dict[str, dict[Labels, float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value

    def rows(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """Those with these labels, `name` without our prefix."""
        wanted = frozenset(labels.items())
        for name_ in (f"sightline_{name}", name):
            for has, value in self._samples.get(name_, {}).items():
                if wanted <= has:
                    yield dict(has), value

    def sum(self, name: str, **labels: str) -> float:
        return sum(value for _, value in self.rows(name, **labels))


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    state: str
    engine: str | None
    slots: float
    running: float
    waiting: float
    predicted_wait_s: float
    requests_per_s: float
    failed_per_s: float
    tokens_per_s: float
    ttft_p50_s: float | None
    """None: nobody got a first token lately."""
    ttft_p99_s: float | None
    inter_token_p50_s: float | None
    kv_used: float | None
    """Share of the blocks; None: the engine has none, or does not tell."""
    prefix_hits: float | None
    """Share of the prompt tokens."""
    embedding_hits: float | None
    """Share of the pictures."""
    restarts: float
    breaker: float
    """0 closed, 0.5 half-open, 1 open."""
    rss_bytes: float
    cpu: float
    """Cores, of the engine's process."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A moment. Rates are of the time since the scrape before, quantiles and shares of the last minute or so."""

    version: str
    up_s: float | None
    over_s: float
    """Between the two scrapes."""
    models: tuple[Model, ...]
    http_per_s: Mapping[str, float]
    """By class of status: `2xx`."""
    routes: tuple[tuple[str, float, float | None], ...]
    """Template, requests a second, p99 in seconds; the busiest first."""
    in_flight: float
    bytes_in_per_s: float
    bytes_out_per_s: float
    pictures_per_s: float
    picture_stages: Mapping[str, float | None]
    """Median seconds of `fetch`, `decode`, `resize`."""
    picture_hits: float | None
    """Share of the pictures whose pixels were at hand."""
    picture_cache_bytes: float
    decoders: float
    decoders_busy: float
    decoders_waiting: float
    batches: float
    lines_waiting: float
    lines_running: float
    oldest_batch_s: float
    rss_bytes: float
    cpu: float
    """Cores."""
    open_files: float
    loop_lag_p99_s: float | None


_FAILED = ("Engine", "Upstream", "DeadlineExceeded", "bug")
_HIT = ("hit", "shared")


def to_frame(now: Scrape, before: Scrape, long_before: Scrape | None = None, *, wall: float | None = None) -> Frame:
    """`before`: the scrape before; `long_before`: one about a minute ago, for what is rare. `wall`: seconds since 1970,
    for how long the server has been up."""
    rate = _Since(now, before)
    lately = _Since(now, long_before or before)
    names = sorted({labels["model"] for labels, _ in now.rows("slots")})
    started = now.sum("process_start_time_seconds")
    found = sum(lately.sum("image_cache_total", result=result) for result in _HIT)
    return Frame(
        version=next((labels["version"] for labels, _ in now.rows("build_info")), "?"),
        up_s=None if wall is None or not started else max(0.0, wall - started),
        over_s=rate.seconds,
        models=tuple(_model(name, now, rate, lately) for name in names),
        http_per_s=rate.by("http_requests_total", "status"),
        routes=_routes(rate, lately),
        in_flight=now.sum("http_requests_in_flight"),
        bytes_in_per_s=rate.per_s("http_request_bytes_total"),
        bytes_out_per_s=rate.per_s("http_response_bytes_total"),
        pictures_per_s=rate.per_s("image_cache_total"),
        picture_stages={
            stage: lately.quantile(0.5, "image_stage_seconds", stage=stage) for stage in ("fetch", "decode", "resize")
        },
        picture_hits=_share(found, lately.sum("image_cache_total")),
        picture_cache_bytes=now.sum("image_cache_bytes"),
        decoders=now.sum("decoders"),
        decoders_busy=now.sum("decoders_busy"),
        decoders_waiting=now.sum("decoders_waiting"),
        batches=now.sum("jobs_unfinished"),
        lines_waiting=now.sum("jobs_requests_waiting"),
        lines_running=now.sum("jobs_requests_running"),
        oldest_batch_s=now.sum("jobs_oldest_seconds"),
        rss_bytes=now.sum("process_resident_memory_bytes"),
        cpu=rate.per_s("process_cpu_seconds_total"),
        open_files=now.sum("process_open_fds"),
        loop_lag_p99_s=lately.quantile(0.99, "event_loop_lag_seconds"),
    )


def _model(name: str, now: Scrape, rate: _Since, lately: _Since) -> Model:
    state = next((labels["state"] for labels, value in now.rows("model_state", model=name) if value), "?")
    blocks = now.sum("kv_blocks", model=name)
    failed = (
        rate.per_s("requests_total", model=name, outcome=labels["outcome"])
        for labels, _ in now.rows("requests_total", model=name)
        if labels["outcome"].startswith(_FAILED)
    )
    return Model(
        name=name,
        state=state,
        engine=now.models.get(name, {}).get("engine"),
        slots=now.sum("slots", model=name),
        running=now.sum("requests_running", model=name),
        waiting=now.sum("requests_waiting", model=name),
        predicted_wait_s=now.sum("predicted_wait_seconds", model=name),
        requests_per_s=rate.per_s("requests_total", model=name),
        failed_per_s=sum(failed),
        tokens_per_s=rate.per_s("completion_tokens_total", model=name),
        ttft_p50_s=lately.quantile(0.5, "ttft_seconds", model=name),
        ttft_p99_s=lately.quantile(0.99, "ttft_seconds", model=name),
        inter_token_p50_s=lately.quantile(0.5, "inter_token_seconds", model=name),
        kv_used=_share(now.sum("kv_blocks_used", model=name), blocks),
        prefix_hits=_share(
            lately.sum("cached_tokens_total", model=name), lately.sum("prompt_tokens_total", model=name)
        ),
        embedding_hits=_share(
            lately.sum("images_cached_total", model=name), lately.sum("tokens_per_image_count", model=name)
        ),
        restarts=now.sum("engine_restarts", model=name),
        breaker=now.sum("breaker_open", model=name),
        rss_bytes=now.sum("engine_process_resident_memory_bytes", model=name),
        cpu=rate.per_s("engine_process_cpu_seconds", model=name),
    )


def _routes(rate: _Since, lately: _Since) -> tuple[tuple[str, float, float | None], ...]:
    busy = sorted(rate.by("http_requests_total", "route").items(), key=lambda item: (-item[1], item[0]))
    return tuple(
        (route, per_s, lately.quantile(0.99, "http_request_seconds", route=route)) for route, per_s in busy if per_s
    )


class _Since:
    """What came between two scrapes."""

    def __init__(self, now: Scrape, before: Scrape) -> None:
        self._now = now
        self._before = before
        self.seconds = now.at - before.at

    def sum(self, name: str, **labels: str) -> float:
        """Of a counter. One that has fallen was started anew: then all of it came since."""
        return sum(more for _, more in self._more(name, **labels))

    def per_s(self, name: str, **labels: str) -> float:
        return self.sum(name, **labels) / self.seconds if self.seconds > 0 else 0.0

    def by(self, name: str, label: str) -> dict[str, float]:
        """A rate for each value of a label."""
        rates: dict[str, float] = {}
        for labels, more in self._more(name):
            rates[labels[label]] = rates.get(labels[label], 0.0) + (more / self.seconds if self.seconds > 0 else 0.0)
        return rates

    def quantile(self, q: float, name: str, **labels: str) -> float | None:
        """Of a histogram's observations since, as Prometheus' `histogram_quantile` reckons it: evenly spread within a
        bucket; of what is above the last bound, that bound. None: there were none."""
        counts: dict[float, float] = {}
        for has, more in self._more(f"{name}_bucket", **labels):
            bound = math.inf if has["le"] == "+Inf" else float(has["le"])
            counts[bound] = counts.get(bound, 0.0) + more
        if not counts or not counts.get(math.inf):
            return None
        rank = q * counts[math.inf]
        lower = below = 0.0
        for bound in sorted(counts):
            if counts[bound] >= rank:
                if bound == math.inf:
                    return lower
                return lower + (bound - lower) * (rank - below) / (counts[bound] - below)
            lower, below = bound, counts[bound]
        return lower

    def _more(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        before = {frozenset(has.items()): value for has, value in self._before.rows(name, **labels)}
        for has, value in self._now.rows(name, **labels):
            was = before.get(frozenset(has.items()), 0.0)
            yield has, value - was if value >= was else value


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
