"""Counts of several processes as one."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sightline import metrics
from sightline.frontends.frames import Family
from sightline.frontends.totals import Told, Totals, to_families


def process(requests: int, running: int, took_s: float) -> tuple[Family, ...]:
    registry = CollectorRegistry()
    Counter("sightline_x", "X.", ["model"], registry=registry).labels("a").inc(requests)
    Gauge("sightline_running", "Running.", registry=registry).set(running)
    Gauge("sightline_build_info", "Build.", ["version"], registry=registry).labels("1").set(1)
    Gauge("process_start_time_seconds", "Began.", registry=registry).set(1000 + requests)
    Gauge("sightline_jobs_waiting", "Of one queue.", registry=registry).set(7)
    Histogram("sightline_took", "Took.", buckets=(1, 2), registry=registry).observe(took_s)
    return to_families(registry)


def text(totals: Totals, own: tuple[Family, ...]) -> list[str]:
    rendered = metrics.render(Told(totals.all(own)))[0].decode()
    return [line for line in rendered.splitlines() if not line.startswith("#")]


def test_counters_and_histograms_are_sums_and_so_are_gauges() -> None:
    totals = Totals()
    totals.put("front 0", process(2, 1, 0.5))
    totals.put("front 1", process(3, 1, 1.5))
    lines = text(totals, process(5, 2, 9.0))
    assert 'sightline_x_total{model="a"} 10.0' in lines
    assert "sightline_running 4.0" in lines
    assert 'sightline_took_bucket{le="1.0"} 1.0' in lines
    assert 'sightline_took_bucket{le="+Inf"} 3.0' in lines
    assert "sightline_took_sum 11.0" in lines
    assert 'sightline_build_info{version="1"} 1.0' in lines
    assert "process_start_time_seconds 1002.0" in lines, "of the oldest"
    assert "sightline_jobs_waiting 7.0" in lines, "every process sees the same queue"


def test_what_a_process_tells_replaces_what_it_told() -> None:
    totals = Totals()
    for count in (2, 3):
        totals.put("front 0", process(count, 1, 0.5))
    assert 'sightline_x_total{model="a"} 8.0' in text(totals, process(5, 2, 0.5))


def test_no_counter_falls_when_a_process_ends_but_gauges_do() -> None:
    totals = Totals()
    totals.put("front 0", process(2, 1, 0.5))
    totals.retire("front 0")
    totals.retire("front 0")
    totals.put("front 0 again", process(1, 1, 0.5))
    totals.retire("front 0 again")
    lines = text(totals, process(5, 2, 0.5))
    assert 'sightline_x_total{model="a"} 8.0' in lines
    assert "sightline_took_count 3.0" in lines
    assert "sightline_running 2.0" in lines
