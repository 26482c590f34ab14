"""Writes the dashboard: `python deploy/grafana/dashboard.py` (a test fails when `sightline.json` is out of date).

A row of the dashboard is a function here, a panel a line or two; places, ids and all that Grafana wants beside them are
worked out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the test runs this file by its path

from model import MODEL, PROCESS, Panel, to_dashboard  # noqa: E402


def stat(title: str, meaning: str, unit: str, expression: str, **more: Any) -> Panel:
    return Panel(title, meaning, unit, [(expression, "")], kind="stat", width=4, height=4, **more)


def rate(metric: str, labels: str = PROCESS) -> str:
    return f"rate(sightline_{metric}{{{labels}}}[$__rate_interval])"


def total(metric: str, by: str, labels: str = PROCESS) -> str:
    return f"sum by ({by}) ({rate(metric, labels)})"


def quantiles(metric: str, by: str = "model", labels: str = MODEL) -> list[tuple[str, str]]:
    buckets = rate(f"{metric}_bucket", labels)
    return [
        (f"histogram_quantile({q}, sum by (le, {by}) ({buckets}))", f"p{q * 100:.0f} {{{{{by}}}}}")
        for q in (0.5, 0.95, 0.99)
    ]


def gauge(metric: str, by: str = "model", labels: str = MODEL) -> str:
    return f"sum by ({by}) (sightline_{metric}{{{labels}}})"


def share(part: str, whole: str) -> str:
    """Nothing, where there was nothing to take a share of."""
    return f"({part}) / (({whole}) > 0)"


def overview() -> list[Panel]:
    requests = f"sum({rate('requests_total', MODEL)})"
    bad = f"sum({rate('requests_total', MODEL + ', ' + FAILURES)})"
    return [
        stat("Requests", "Asked of models, whatever the API.", "reqps", requests),
        stat(
            "Failed",
            "Of these: engines that broke, deadlines, bugs. Not what clients did wrong, nor refusals for want of room.",
            "percentunit",
            f"({bad} or vector(0)) / ({requests} > 0)",
            thresholds=(("green", None), ("orange", 0.01), ("red", 0.05)),
        ),
        stat("In flight", "HTTP requests.", "short", f"sum(sightline_http_requests_in_flight{{{PROCESS}}})"),
        stat(
            "Time to first token, p99",
            "From admission.",
            "s",
            f"histogram_quantile(0.99, sum by (le) ({rate('ttft_seconds_bucket', MODEL)}))",
        ),
        stat("Tokens", "Generated.", "cps", f"sum({rate('completion_tokens_total', MODEL)})"),
        stat(
            "Models not ready",
            "Loading, failed or unloaded.",
            "short",
            f'sum(sightline_model_state{{{MODEL}, state!="ready"}})',
            thresholds=(("green", None), ("orange", 1)),
        ),
    ]


FAILURES = 'outcome=~"Engine.*|Upstream.*|DeadlineExceeded|bug"'


def traffic() -> list[Panel]:
    answered = total("http_requests_total", "status")
    return [
        Panel("Requests by status", "HTTP.", "reqps", [(answered, "{{status}}")], stacked=True),
        Panel("Requests by route", "HTTP.", "reqps", [(total("http_requests_total", "route"), "{{route}}")]),
        Panel(
            "Requests by API",
            "`inside`: lines of batches.",
            "reqps",
            [(total("http_requests_total", "dialect"), "{{dialect}}")],
        ),
        Panel(
            "Requests by model",
            "However they ended.",
            "reqps",
            [(total("requests_total", "model", MODEL), "{{model}}")],
        ),
        Panel(
            "Bytes",
            "Bodies.",
            "Bps",
            [
                (f"sum({rate('http_request_bytes_total')})", "in"),
                (f"sum({rate('http_response_bytes_total')})", "out"),
            ],
        ),
        Panel(
            "Tokens",
            "Prompts with their pictures, and answers.",
            "cps",
            [
                (f"sum({rate('prompt_tokens_total', MODEL)})", "prompt"),
                (f"sum({rate('image_tokens_total', MODEL)})", "of these pictures"),
                (f"sum({rate('completion_tokens_total', MODEL)})", "answers"),
            ],
        ),
    ]


def latency() -> list[Panel]:
    return [
        Panel("Time to first token", "From admission to the first event.", "s", quantiles("ttft_seconds")),
        Panel("Time per token", "Between deltas, by token (TPOT).", "s", quantiles("inter_token_seconds")),
        Panel("Whole requests", "From admission to the last event.", "s", quantiles("request_seconds")),
        Panel(
            "By route, p99",
            "HTTP, to the last byte.",
            "s",
            [
                (
                    f"histogram_quantile(0.99, sum by (le, route) ({rate('http_request_seconds_bucket')}))",
                    "{{route}}",
                )
            ],
            width=12,
        ),
        Panel(
            "Event loop",
            "How late it woke: what every client feels when something blocks it.",
            "s",
            quantiles("event_loop_lag_seconds", "instance", PROCESS),
            width=12,
        ),
    ]


def pictures() -> list[Panel]:
    stages = f"histogram_quantile(0.95, sum by (le, stage) ({rate('image_stage_seconds_bucket')}))"
    per = [total(f"image_stage_seconds_{of}", "stage") for of in ("sum", "count")]
    return [
        Panel("A picture's way in, p95", "Fetched, decoded, resized.", "s", [(stages, "{{stage}}")]),
        Panel("A picture's way in, mean", "Stacked: what one costs.", "s", [(share(*per), "{{stage}}")], stacked=True),
        Panel(
            "Pictures",
            "By where their pixels came from.",
            "cps",
            [(total("image_cache_total", "result"), "{{result}}")],
        ),
        Panel(
            "Decoders",
            "Processes that have a picture in work, and pictures that wait for one.",
            "short",
            [
                (gauge("decoders_busy", "instance", PROCESS), "busy {{instance}}"),
                (gauge("decoders_waiting", "instance", PROCESS), "waiting {{instance}}"),
                (gauge("decoders", "instance", PROCESS), "all {{instance}}"),
            ],
        ),
        Panel(
            "Size of a picture, mean",
            "Pixels, as they were sent and as they were served.",
            "short",
            [
                (share(f"sum({rate('image_pixels_sum')})", f"sum({rate('image_pixels_count')})"), "sent"),
                (
                    share(f"sum({rate('image_served_pixels_sum')})", f"sum({rate('image_served_pixels_count')})"),
                    "served",
                ),
            ],
        ),
        Panel(
            "Tokens of a picture, mean",
            "And how many a second were made smaller because the context was full.",
            "short",
            [
                (
                    share(
                        total("tokens_per_image_sum", "model", MODEL), total("tokens_per_image_count", "model", MODEL)
                    ),
                    "{{model}}",
                ),
                (total("images_scaled_to_fit_total", "model", MODEL), "scaled to fit /s {{model}}"),
            ],
        ),
    ]


def queues() -> list[Panel]:
    return [
        Panel(
            "Running and waiting",
            "Requests.",
            "short",
            [
                (gauge("requests_running"), "running {{model}}"),
                (gauge("requests_waiting"), "waiting {{model}}"),
                (gauge("slots"), "slots {{model}}"),
            ],
        ),
        Panel("Waiting for a slot", "Of requests that had one.", "s", quantiles("queue_seconds")),
        Panel(
            "Predicted wait",
            "Of a request that came now, by the queue and the measured rate.",
            "s",
            [(f"max by (model) (sightline_predicted_wait_seconds{{{MODEL}}})", "{{model}}")],
        ),
    ]


def engine() -> list[Panel]:
    stages = (
        total("engine_stage_seconds_sum", "model, stage", MODEL),
        total("engine_stage_seconds_count", "model, stage", MODEL),
    )
    return [
        Panel(
            "Inside the engine, mean",
            "What a request costs by stage.",
            "s",
            [(share(*stages), "{{model}} {{stage}}")],
            stacked=True,
        ),
        Panel("Tokens", "Generated.", "cps", [(total("completion_tokens_total", "model", MODEL), "{{model}}")]),
        Panel(
            "Keys and values",
            "Share of the blocks that requests hold; what is kept as prefixes can be taken.",
            "percentunit",
            [
                (share(gauge("kv_blocks_used"), gauge("kv_blocks")), "used {{model}}"),
                (share(gauge("kv_blocks_cached"), gauge("kv_blocks")), "prefixes {{model}}"),
            ],
            most=1,
        ),
        Panel(
            "State",
            "1 for the state that each model is in.",
            "short",
            [(f"sightline_model_state{{{MODEL}}} > 0", "{{model}} {{state}} {{instance}}")],
        ),
        Panel(
            "Restarts and breakers",
            "Processes started again; 1 for an engine that is left alone.",
            "short",
            [
                (
                    f"sum by (model) (increase(sightline_engine_restarts{{{MODEL}}}[$__rate_interval]))",
                    "restarts {{model}}",
                ),
                (f"max by (model) (sightline_breaker_open{{{MODEL}}})", "breaker {{model}}"),
            ],
        ),
        Panel(
            "Memory and processors",
            "Of the engine's process.",
            "bytes",
            [
                (gauge("engine_process_resident_memory_bytes"), "memory {{model}}"),
            ],
        ),
    ]


def caches() -> list[Panel]:
    hits = f"sum({rate('image_cache_total', PROCESS + ', result=~' + chr(34) + 'hit|shared' + chr(34))})"
    return [
        Panel(
            "Found in a cache",
            "Shares. Prompt tokens: those whose keys and values were there.",
            "percentunit",
            [
                (share(hits, f"sum({rate('image_cache_total')})"), "decoded pictures"),
                (
                    share(
                        f"sum({rate('images_cached_total', MODEL)})", f"sum({rate('tokens_per_image_count', MODEL)})"
                    ),
                    "embeddings",
                ),
                (
                    share(f"sum({rate('cached_tokens_total', MODEL)})", f"sum({rate('prompt_tokens_total', MODEL)})"),
                    "prompt tokens",
                ),
            ],
            most=1,
            width=12,
        ),
        Panel(
            "Kept",
            "Bytes.",
            "bytes",
            [
                (gauge("image_cache_bytes", "instance", PROCESS), "decoded pictures {{instance}}"),
                (gauge("embedding_cache_bytes"), "embeddings {{model}}"),
            ],
            width=6,
        ),
        Panel(
            "Made room",
            "Decoded pictures.",
            "cps",
            [(f"sum({rate('image_cache_evictions_total')})", "evicted")],
            width=6,
        ),
    ]


def errors() -> list[Panel]:
    wrong = f'{MODEL}, outcome!="ok"'
    return [
        Panel(
            "Not answered",
            "Requests by why.",
            "reqps",
            [(total("requests_total", "outcome", wrong), "{{outcome}}")],
            stacked=True,
        ),
        Panel(
            "Tried again",
            "On the same engine, and on another model.",
            "cps",
            [
                (total("retries_total", "model", MODEL), "retried {{model}}"),
                (total("fallbacks_total", "model", MODEL), "left {{model}}"),
            ],
        ),
        Panel(
            "Bugs",
            "Tokens of pictures that an engine counted otherwise, and errors that nobody foresaw.",
            "cps",
            [
                (total("image_token_mismatches_total", "model", MODEL), "counted otherwise {{model}}"),
                (total("requests_total", "model", MODEL + ', outcome="bug"'), "bug {{model}}"),
            ],
        ),
    ]


def batches() -> list[Panel]:
    # Every server and worker of a shared queue tells of all of it.
    def told(metric: str) -> str:
        return f"max(sightline_{metric}{{{PROCESS}}})"

    return [
        Panel(
            "Lines",
            "Of batches, and analyses.",
            "short",
            [(told("jobs_requests_waiting"), "waiting"), (told("jobs_requests_running"), "running")],
        ),
        Panel("Not ended", "Batches and analyses.", "short", [(told("jobs_unfinished"), "batches")]),
        Panel("Age of the oldest", "A batch expires after its window.", "s", [(told("jobs_oldest_seconds"), "oldest")]),
    ]


def processes() -> list[Panel]:
    return [
        Panel(
            "Memory",
            "Resident, of the server's own process.",
            "bytes",
            [
                (f"process_resident_memory_bytes{{{PROCESS}}}", "{{instance}}"),
                (gauge("bodies_bytes", "instance", PROCESS), "of these bodies of requests {{instance}}"),
            ],
            width=6,
        ),
        Panel(
            "Processors",
            "Cores in use.",
            "short",
            [
                (f"rate(process_cpu_seconds_total{{{PROCESS}}}[$__rate_interval])", "server {{instance}}"),
                (
                    f"sum by (model) (rate(sightline_engine_process_cpu_seconds{{{MODEL}}}[$__rate_interval]))",
                    "engine {{model}}",
                ),
            ],
            width=6,
        ),
        Panel(
            "Open files",
            "Sockets among them.",
            "short",
            [
                (f"process_open_fds{{{PROCESS}}}", "{{instance}}"),
                (f"process_max_fds{{{PROCESS}}}", "most {{instance}}"),
            ],
            width=6,
        ),
        Panel(
            "Tasks",
            "Of the event loop; steady under a steady load.",
            "short",
            [(gauge("event_loop_tasks", "instance", PROCESS), "{{instance}}")],
            width=6,
        ),
        Panel(
            "Connections",
            "Open ones, and those a second that the server ended, by why.",
            "short",
            [
                (gauge("http_connections", "instance", PROCESS), "open {{instance}}"),
                (total("http_connections_cut_total", "reason"), "ended /s {{reason}}"),
            ],
            width=12,
        ),
        Panel(
            "Versions",
            "Processes by what they run.",
            "short",
            [(f"count by (version) (sightline_build_info{{{PROCESS}}})", "{{version}}")],
            width=12,
        ),
    ]


ROWS = {
    "Overview": overview,
    "Traffic": traffic,
    "Latency": latency,
    "Pictures": pictures,
    "Queues": queues,
    "Engines": engine,
    "Caches": caches,
    "Errors": errors,
    "Batches": batches,
    "Processes": processes,
}


def to_json() -> str:
    return json.dumps(to_dashboard({title: row() for title, row in ROWS.items()}), indent=1) + "\n"


if __name__ == "__main__":
    (HERE / "sightline.json").write_text(to_json())
