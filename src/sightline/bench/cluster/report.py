"""Figures: a line each while it runs, then tables, JSON (whose `points` the simulation reads) and a plot."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sightline.bench.cluster.measure import (
    CLIENTS,
    PREFILL_S,
    SLOTS,
    STEP_S,
    WORDS,
    Delay,
    Failover,
    Latency,
    Measured,
    Point,
    Scaling,
    Way,
)
from sightline.bench.cluster.processes import CLIENTS as LOAD
from sightline.bench.cluster.processes import WHO

LINEAR = 0.9
"""What is promised of n replicas: of n times what one does."""
_FIGURES = re.compile(r"(<!-- figures: [^\n]* -->\n).*(<!-- end of figures -->)", re.S)
_SHOWN = tuple(who for who in WHO if who != "single server")


def of_linear(point: Point, points: Sequence[Point]) -> float:
    """Its throughput, of as many times what the smallest cluster had."""
    first = min(points, key=lambda each: each.replicas)
    return point.tokens_per_s / (first.tokens_per_s * point.replicas / first.replicas)


# --- while it runs ---------------------------------------------------------------------------------------------------


def point_line(point: Point) -> str:
    cores = sum(point.cores.values())
    return (
        f"{point.tokens_per_s:7.1f} tokens/s, TTFT p50 {point.ttft_p50_s:.2f} s, words {_ms(point.delay_p50_s)} late "
        f"(p99 {_ms(point.delay_p99_s)}), {cores:.2f} cores{_wrong(point.wrong)}{point.why and ': '}{point.why}"
    )


def way_line(told: Way) -> str:
    return (
        f"a step {_ms(told.step_s)}; to the ingress' line {_ms(told.before_s)}, out {_ms(told.out_s)}, back "
        f"{_ms(told.back_s)}"
    )


def latency_line(told: Latency) -> str:
    return (
        f"200 KB: single {_ms(told.single_p50_s)} (p99 {_ms(told.single_p99_s)}), cluster {_ms(told.cluster_p50_s)} "
        f"(p99 {_ms(told.cluster_p99_s)}){_wrong(told.wrong)}"
    )


def delay_line(told: Delay) -> str:
    return f"single: words {_ms(told.single_p50_s)} late (p99 {_ms(told.single_p99_s)})"


def scaling_line(told: Scaling) -> str:
    return (
        f"a replica more: decided {told.decided_s:.1f} s, runs {told.runs_s:.1f} s, serves {told.serves_s:.1f} s after "
        f"the load; from none: {told.from_zero_s:.1f} s"
    )


def failover_line(told: Failover) -> str:
    return f"killed: all answered again {told.next_good_s:.2f} s later, whole {told.whole_s:.1f} s; {told.outcomes}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _wrong(count: int) -> str:
    return f", {count} NOT ANSWERED" if count else ""


# --- at the end ------------------------------------------------------------------------------------------------------


def to_text(measured: Measured) -> str:
    """The tables, as Markdown."""
    parts = [_throughput(measured.points), _processors(measured.points)]
    parts.append(_times(measured))
    parts.append(
        f"{measured.cores} cores; other work on the machine when it began: a load of {measured.load_before:.1f}, when "
        f"it ended {measured.load_after:.1f} (0: none).\n"
    )
    return "\n".join(parts)


def _throughput(points: Sequence[Point]) -> str:
    lines = [
        "| replicas | clients | tokens/s | of linear | | TTFT p50, s | a word is late, p50 | p99 | not answered |",
        "|--:|--:|--:|--:|---|--:|--:|--:|--:|",
    ]
    for point in points:
        share = of_linear(point, points)
        lines.append(
            f"| {point.replicas} | {point.clients} | {point.tokens_per_s:.1f} | {share:.2f} "
            f"| {'met' if share >= LINEAR else 'not met'} | {point.ttft_p50_s:.2f} | {_ms(point.delay_p50_s)} "
            f"| {_ms(point.delay_p99_s)} | {point.wrong} |"
        )
    return "\n".join(lines) + "\n"


def _processors(points: Sequence[Point]) -> str:
    lines = [
        f"| cores taken, with replicas | {' | '.join(str(point.replicas) for point in points)} "
        f"| {points[-1].replicas}, nobody asks | CPU ms of a token |",
        "|---|" + "--:|" * (len(points) + 2),
    ]
    for who in _SHOWN:
        cells = [f"{point.cores.get(who, 0.0):.2f}" for point in points]
        idle, token = points[-1].idle.get(who, 0.0), points[-1].cpu_ms_a_token.get(who, 0.0)
        lines.append(f"| {who} | {' | '.join(cells)} | {idle:.2f} | {token:.2f} |")
    totals = [f"{sum(point.cores.values()):.2f}" for point in points]
    idle, token = sum(points[-1].idle.values()), sum(points[-1].cpu_ms_a_token.values())
    lines.append(f"| all | {' | '.join(totals)} | {idle:.2f} | {token:.2f} |")
    return "\n".join(lines) + "\n"


def _times(measured: Measured) -> str:
    lines = ["| | single server | cluster | added |", "|---|--:|--:|--:|"]
    if (told := measured.latency) is not None:
        for name, single, cluster in (
            ("p50", told.single_p50_s, told.cluster_p50_s),
            ("p99", told.single_p99_s, told.cluster_p99_s),
        ):
            lines.append(f"| a request with a picture of 200 KB, {name} | {_ms(single)} | {_ms(cluster)} "
                         f"| {_ms(cluster - single)} |")  # fmt: skip
    if (late := measured.delay) is not None and measured.points:
        for name, single, cluster in (
            ("p50", late.single_p50_s, measured.points[0].delay_p50_s),
            ("p99", late.single_p99_s, measured.points[0].delay_p99_s),
        ):
            lines.append(f"| a word, from engine to client, {name} | {_ms(single)} | {_ms(cluster)} "
                         f"| {_ms(cluster - single)} |")  # fmt: skip
        ingress = measured.points[0].cpu_ms_a_token.get("ingress", 0.0)
        lines.append(
            f"| CPU of a word, server or ingress | {late.single_cpu_ms_a_token:.2f} ms | {ingress:.2f} ms "
            f"| {ingress - late.single_cpu_ms_a_token:.2f} ms |"
        )
    if (way := measured.way) is not None:
        lines += ["", "| for the simulation, of a lone client, p50 | ms |", "|---|--:|"]
        for name, seconds in (
            ("a step of the engine's, 50 ms by its own clock", way.step_s),
            ("from a client to the ingress' line", way.before_s),
            ("from there to the engine, when a slot is free", way.out_s),
            ("a word, from the engine to the client", way.back_s),
        ):
            lines.append(f"| {name} | {1000 * seconds:.1f} |")
    lines += ["", "| | seconds |", "|---|--:|"]
    if (grown := measured.scaling) is not None:
        lines += [
            f"| from load until another replica is decided on | {grown.decided_s:.1f} |",
            f"| until it runs | {grown.runs_s:.1f} |",
            f"| until its first word has arrived | {grown.serves_s:.1f} |",
            f"| the first word of a model that had no replica | {grown.from_zero_s:.1f} |",
        ]
    for number, failed in enumerate(measured.failovers, 1):
        lines += [
            f"| SIGKILL {number}: until every client had its next good answer ({_outcomes(failed)}) "
            f"| {failed.next_good_s:.2f} |",
            f"| until both replicas answered again | {failed.whole_s:.1f} |",
        ]
    return "\n".join(lines) + "\n"


def _outcomes(failed: Failover) -> str:
    """What became of the requests that were not answered."""
    bad = {what: count for what, count in failed.outcomes.items() if what != "ok"}
    return ", ".join(f"{what}: {count}" for what, count in bad.items()) or "no errors"


def to_json(measured: Measured) -> str:
    told: dict[str, Any] = asdict(measured)
    for each, point in zip(told["points"], measured.points, strict=True):
        # As `sightline.cluster.simulation.measured.Point` has them, beside what only this page tells.
        each["steady_tokens_per_s"] = point.tokens_per_s
        each["tokens_per_s"] = point.whole_tokens_per_s
        each |= {"answer_tokens": WORDS, "slots": SLOTS, "step_s": STEP_S, "prefill_s_per_token": PREFILL_S}
        each |= {} if measured.way is None else asdict(measured.way)
        each["of_linear"] = of_linear(point, measured.points)
    return json.dumps(_rounded(told), indent=1) + "\n"


def _rounded(value: Any) -> Any:
    """What never happened is null: JSON has no other word for it."""
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def write(measured: Measured, prefix: Path) -> None:
    """PREFIX.json, PREFIX.png where matplotlib is installed, and the tables into PREFIX.md, between its comments."""
    prefix.with_suffix(".json").write_text(to_json(measured))
    page = prefix.with_suffix(".md")
    if page.exists():
        text = to_text(measured)
        page.write_text(_FIGURES.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", page.read_text()))
    if not plot(measured, prefix.with_suffix(".png")):
        print("matplotlib is not installed: no plot")


def plot(measured: Measured, path: Path) -> bool:
    """By the number of replicas: throughput, who took the cores, how late words are. False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    points = measured.points
    sizes = [point.replicas for point in points]
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    rate, cores, late = figure.subplots(1, 3)
    linear = [points[0].tokens_per_s * size / sizes[0] for size in sizes]
    rate.plot(sizes, linear, "--", color="#b0b0b0", label="linear")
    rate.fill_between(sizes, [LINEAR * each for each in linear], linear, color="#b0b0b0", alpha=0.25, linewidth=0)
    rate.plot(sizes, [point.tokens_per_s for point in points], "o-", color="#2463eb", label="measured")
    rate.set_title("tokens a second", fontsize=10)
    rate.set_ylim(0, None)
    rate.legend(frameon=False, loc="upper left")
    bottom = [0.0] * len(points)
    colours = ("#2463eb", "#e08a1e", "#3aa76d", "#b04a9a", "#7a5cc7", "#d24b4b", "#b0b0b0")
    for who, colour in zip(_SHOWN, colours, strict=True):
        heights = [point.cores.get(who, 0.0) for point in points]
        if max(heights) >= 0.01:
            label = "load generator" if who == LOAD else who
            cores.bar([str(size) for size in sizes], heights, 0.7, bottom, color=colour, label=label)
        bottom = [low + high for low, high in zip(bottom, heights, strict=True)]
    cores.axhline(measured.cores, color="#808080", linewidth=0.8, linestyle=":")
    cores.set_title(f"cores taken, of {measured.cores}", fontsize=10)
    cores.legend(frameon=False, fontsize=8, loc="upper left")
    late.plot(sizes, [1000 * point.delay_p50_s for point in points], "o-", color="#2463eb", label="p50")
    late.plot(sizes, [1000 * point.delay_p99_s for point in points], "o--", color="#2463eb", label="p99")
    late.set_title("a word from engine to client, ms (logarithmic)", fontsize=10)
    late.set_yscale("log")
    late.yaxis.set_major_formatter("{x:g}")
    late.legend(frameon=False)
    for axes in (rate, late):
        axes.set_xticks(sizes, map(str, sizes))
    for axes in (rate, cores, late):
        axes.set_xlabel(f"replicas, {CLIENTS} clients each")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    return True
