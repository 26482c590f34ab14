"""A frame of `sightline top` as it looks in a terminal of any width. Pure: figures in, rich's renderables out."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sightline.cli.top_figures import Frame, Model
from sightline.logs import escape

NOTHING = "–"
"""Shown where there is nothing to tell."""
_STATES = {"ready": "green", "loading": "yellow", "unloaded": "dim", "failed": "bold red"}
_ROUTES = 6
_SIDE_BY_SIDE = 96
"""Columns of a terminal from which the panels stand in one row, not in two."""
_WIDE = 148
"""From which each model has all its columns."""


def to_view(frame: Frame, url: str, width: int, problem: str | None = None) -> RenderableType:
    """`problem`: why this frame is not of now."""
    parts: list[RenderableType] = [_head(frame, url)]
    if problem is not None:
        parts.append(to_problem(problem))
    parts.append(_models(frame.models, wide=width >= _WIDE))
    panels = [
        _panel("pictures", _pictures(frame)),
        _panel("batches", _batches(frame)),
        _panel("http", _http(frame)),
        _panel("process", _process(frame)),
    ]
    beside = len(panels) if width >= _SIDE_BY_SIDE else 2
    grid = Table.grid(expand=True)
    for _ in range(beside):
        grid.add_column(ratio=1)
    for first in range(0, len(panels), beside):
        grid.add_row(*panels[first : first + beside])
    parts.append(grid)
    if frame.routes:
        parts.append(_routes(frame))
    return Group(*parts)


def to_problem(problem: str) -> Text:
    return Text(f" {escape(problem)} ", style="bold white on red")


def _head(frame: Frame, url: str) -> Text:
    asked = sum(frame.http_per_s.values())
    failed = frame.http_per_s.get("5xx", 0.0)
    head = Text.assemble(
        ("Sightline ", "bold cyan"),
        (frame.version, "cyan"),
        f"  {escape(url)}",
        f"  up {NOTHING if frame.up_s is None else duration(frame.up_s)}",
        f"  {number(asked)} requests/s",
        f"  {frame.in_flight:.0f} in flight",
    )
    if failed:
        head.append(f"  {number(failed)} failing/s", "bold red")
    return head


def _models(models: Sequence[Model], *, wide: bool) -> Table:
    table = _table()
    table.add_column("model", no_wrap=True, overflow="ellipsis", ratio=1, min_width=12)
    table.add_column("state", no_wrap=True)
    for name in ("run", "wait", "req/s", "tok/s", "TTFT p50", "p99"):
        table.add_column(name, justify="right", no_wrap=True)
    if wide:
        for name in ("token p50", "fail/s", "KV", "prefix", "embed", "restarts", "mem", "cpu"):
            table.add_column(name, justify="right", no_wrap=True)
    for model in models:
        table.add_row(*_row(model), *(_more(model) if wide else ()))
    if not models:
        table.add_row(Text("no models", style="dim"))
    return table


def _row(model: Model) -> list[RenderableType]:
    name = Text(escape(model.name))
    if model.engine is not None:
        name.append(f" {escape(model.engine)}", "dim")
    full = model.slots and model.running >= model.slots
    waiting = f"{model.waiting:.0f}"
    if model.waiting and model.predicted_wait_s:
        waiting += f" ~{duration(model.predicted_wait_s)}"
    return [
        name,
        _state(model),
        Text(f"{model.running:.0f}/{model.slots:.0f}", style="yellow" if full else ""),
        Text(waiting, style="yellow" if model.waiting else "dim"),
        number(model.requests_per_s),
        number(model.tokens_per_s),
        duration(model.ttft_p50_s),
        duration(model.ttft_p99_s),
    ]


def _state(model: Model) -> Text:
    state = Text(model.state, style=_STATES.get(model.state, ""))
    if model.breaker:
        state.append(" breaker open" if model.breaker == 1 else " probing", "bold red")
    return state


def _more(model: Model) -> list[RenderableType]:
    return [
        duration(model.inter_token_p50_s),
        Text(number(model.failed_per_s), style="bold red" if model.failed_per_s else "dim"),
        percent(model.kv_used),
        percent(model.prefix_hits),
        percent(model.embedding_hits),
        Text(f"{model.restarts:.0f}", style="yellow" if model.restarts else "dim"),
        size(model.rss_bytes) if model.rss_bytes else NOTHING,
        f"{model.cpu:.1f}" if model.rss_bytes else NOTHING,
    ]


def _pictures(frame: Frame) -> list[tuple[str, str]]:
    stages = frame.picture_stages
    return [
        ("a second", number(frame.pictures_per_s)),
        ("fetch p50", duration(stages["fetch"])),
        ("decode p50", duration(stages["decode"])),
        ("resize p50", duration(stages["resize"])),
        ("cache", f"{percent(frame.picture_hits)} hits, {size(frame.picture_cache_bytes)}"),
        ("decoders", f"{frame.decoders_busy:.0f}/{frame.decoders:.0f}, {frame.decoders_waiting:.0f} waiting"),
    ]


def _batches(frame: Frame) -> list[tuple[str, str]]:
    return [
        ("not ended", f"{frame.batches:.0f}"),
        ("lines waiting", f"{frame.lines_waiting:.0f}"),
        ("lines running", f"{frame.lines_running:.0f}"),
        ("oldest", duration(frame.oldest_batch_s) if frame.batches else NOTHING),
    ]


def _http(frame: Frame) -> list[tuple[str, str]]:
    classes = [(name, number(per_s)) for name, per_s in sorted(frame.http_per_s.items()) if per_s or name == "2xx"]
    return [
        *classes,
        ("in", f"{size(frame.bytes_in_per_s)}/s"),
        ("out", f"{size(frame.bytes_out_per_s)}/s"),
    ]


def _process(frame: Frame) -> list[tuple[str, str]]:
    return [
        ("memory", size(frame.rss_bytes)),
        ("cores", f"{frame.cpu:.2f}"),
        ("open files", f"{frame.open_files:.0f}"),
        ("loop lag p99", duration(frame.loop_lag_p99_s)),
    ]


def _table() -> Table:
    return Table(expand=True, box=box.ROUNDED, border_style="dim", header_style="bold", padding=(0, 1, 0, 0))


def _panel(title: str, rows: Sequence[tuple[str, str]]) -> Panel:
    grid = Table.grid(expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    for label, value in rows:
        grid.add_row(Text(label, style="dim"), value)
    return Panel(grid, title=title, border_style="dim", title_align="left")


def _routes(frame: Frame) -> Table:
    table = _table()
    table.add_column("route", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("req/s", justify="right")
    table.add_column("p99", justify="right")
    for route, per_s, p99 in frame.routes[:_ROUTES]:
        table.add_row(Text(escape(route)), number(per_s), duration(p99))
    return table


# --- figures as people read them -------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three digits, as far as that goes: `0`, `0.25`, `12.3`, `456`, `1.2k`, `3.4M`."""
    if value < 0.005:
        return "0"
    for limit, shown in ((10, f"{value:.2f}"), (100, f"{value:.1f}"), (1000, f"{value:.0f}")):
        if value < limit:
            return shown
    return f"{value / 1e3:.1f}k" if value < 1e6 else f"{value / 1e6:.1f}M"


def duration(seconds: float | None) -> str:
    """`0.4 ms`, `35 ms`, `2.5 s`, `3 min`, `5 h`, `2 d`."""
    if seconds is None:
        return NOTHING
    for limit, unit, digits in ((0.01, 1e-3, 1), (1, 1e-3, 0), (60, 1, 1)):
        if seconds < limit:
            return f"{seconds / unit:.{digits}f} {'ms' if unit < 1 else 's'}"
    for limit, unit, name in ((3600, 60, "min"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} d"


def size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"


def percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.0f} %"
