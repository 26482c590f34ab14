"""`sightline top`: what its figures mean, what its pages show, and what it says when a server does not tell."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import signal
import socket
import struct
import sys
import termios
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from rich.console import Console

from sightline.cli import main
from sightline.cli.top import Server, Top
from sightline.cli.top_figures import Frame, Scrape, to_frame
from sightline.cli.top_view import duration, number, percent, size, to_view
from sightline.config import ModelConfig, Settings
from sightline.errors import InvalidRequest
from tests.api.serving import server_of

# --- figures ---------------------------------------------------------------------------------------------------------


def scrape(at: float, *lines: str) -> Scrape:
    return Scrape("".join(f"sightline_{line}\n" for line in lines), at)


MODEL = 'slots{model="m"} 4'


def test_rates_are_of_the_time_between_two_scrapes() -> None:
    before = scrape(10, MODEL, 'requests_total{model="m",outcome="ok"} 100', 'completion_tokens_total{model="m"} 5000')
    now = scrape(12, MODEL, 'requests_total{model="m",outcome="ok"} 130', 'completion_tokens_total{model="m"} 5400')
    (model,) = to_frame(now, before).models
    assert (model.requests_per_s, model.tokens_per_s, model.failed_per_s) == (15, 200, 0)


def test_a_counter_that_has_fallen_began_anew() -> None:
    before = scrape(0, MODEL, 'requests_total{model="m",outcome="ok"} 1000')
    now = scrape(2, MODEL, 'requests_total{model="m",outcome="ok"} 8')
    assert to_frame(now, before).models[0].requests_per_s == 4


def test_a_series_that_is_new_began_at_nought() -> None:
    now = scrape(
        2, MODEL, 'requests_total{model="m",outcome="EngineFailed"} 6', 'requests_total{model="m",outcome="ok"} 2'
    )
    (model,) = to_frame(now, scrape(0, MODEL)).models
    assert (model.failed_per_s, model.requests_per_s) == (3, 4)


def test_what_clients_did_wrong_is_no_failure() -> None:
    now = scrape(1, MODEL, 'requests_total{model="m",outcome="InvalidRequest"} 6')
    assert to_frame(now, scrape(0, MODEL)).models[0].failed_per_s == 0


def buckets(*counts: tuple[str, int], name: str = "ttft_seconds") -> list[str]:
    return [f'{name}_bucket{{model="m",le="{bound}"}} {count}' for bound, count in counts]


def test_quantiles_are_of_what_came_since_within_a_bucket_evenly_spread() -> None:
    before = scrape(0, MODEL, *buckets(("0.1", 50), ("1.0", 50), ("+Inf", 50)))
    now = scrape(2, MODEL, *buckets(("0.1", 60), ("1.0", 140), ("+Inf", 150)))
    (model,) = to_frame(now, before).models
    # 10 up to 0.1 s, 80 to 1 s, 10 above: the 50th of 100 is the 40th of 80 in 0.1..1.
    assert model.ttft_p50_s == pytest.approx(0.1 + 0.9 * 40 / 80)
    assert model.ttft_p99_s == 1.0, "above the last bound nobody knows how far"
    assert to_frame(now, now).models[0].ttft_p50_s is None


def test_shares_and_quantiles_are_of_the_last_minute_and_rates_of_the_last_moment() -> None:
    def at(seconds: float, hits: int, misses: int) -> Scrape:
        return scrape(
            seconds, f'image_cache_total{{result="hit"}} {hits}', f'image_cache_total{{result="miss"}} {misses}'
        )

    frame = to_frame(at(60, 40, 60), at(58, 40, 50), at(0, 10, 0))
    assert frame.picture_hits == pytest.approx(30 / 90)
    assert frame.pictures_per_s == 5


def test_states_and_what_an_engine_does_not_tell() -> None:
    states = ['model_state{model="m",state="ready"} 0', 'model_state{model="m",state="failed"} 1']
    now = scrape(1, MODEL, *states, 'kv_blocks{model="m"} 0', 'breaker_open{model="m"} 0.5')
    (model,) = to_frame(now, scrape(0)).models
    assert (model.state, model.kv_used, model.prefix_hits, model.breaker) == ("failed", None, None, 0.5)
    used = scrape(1, MODEL, 'kv_blocks{model="m"} 8', 'kv_blocks_used{model="m"} 2')
    assert to_frame(used, scrape(0)).models[0].kv_used == 0.25


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.004, "0"), (0.25, "0.25"), (12.34, "12.3"), (456.7, "457"), (1234, "1.2k"), (3_400_000, "3.4M")],
)
def test_numbers(value: float, shown: str) -> None:
    assert number(value) == shown


def test_units() -> None:
    shown = [duration(s) for s in (None, 0.0004, 0.035, 2.5, 90, 7200, 200_000)]
    assert shown == ["–", "0.4 ms", "35 ms", "2.5 s", "2 min", "2 h", "2 d"]
    assert [size(b) for b in (10, 2048, 5 * 2**20, 3 * 2**30)] == ["10 B", "2 KiB", "5 MiB", "3.0 GiB"]
    assert (percent(None), percent(0.256)) == ("–", "26 %")


# --- pages -----------------------------------------------------------------------------------------------------------


def page(frame: Frame, width: int, problem: str | None = None) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(to_view(frame, "http://x:8000", width, problem))
    return out.getvalue()


def frame_of(*lines: str) -> Frame:
    return to_frame(scrape(2, 'build_info{version="9.9"} 1', *lines), scrape(0))


def row_of(text: str, name: str) -> list[str]:
    (row,) = [line for line in text.splitlines() if name in line]
    return [cell.strip() for cell in row.strip("│ ").split("│")]


BUSY = (
    MODEL, 'requests_running{model="m"} 4', 'requests_waiting{model="m"} 7', 'predicted_wait_seconds{model="m"} 12',
    'model_state{model="m",state="ready"} 1', 'requests_total{model="m",outcome="ok"} 20',
    'completion_tokens_total{model="m"} 3000', 'engine_restarts{model="m"} 3', 'kv_blocks{model="m"} 100',
    'kv_blocks_used{model="m"} 37', 'engine_process_resident_memory_bytes{model="m"} 2147483648',
    *buckets(("0.5", 10), ("+Inf", 10)),
)  # fmt: skip


def test_a_page_says_what_a_model_is_doing() -> None:
    cells = row_of(page(frame_of(*BUSY), 80), "ready")
    assert cells[:8] == ["m", "ready", "4/4", "7 ~12.0 s", "10.0", "1.5k", "250 ms", "495 ms"]
    wide = row_of(page(frame_of(*BUSY), 150), "ready")
    assert wide[10] == "37 %"
    assert wide[13:15] == ["3", "2.0 GiB"]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 150, 250])
def test_pages_fit_whatever_the_terminals_width(width: int) -> None:
    for line in page(
        frame_of(*BUSY, 'http_requests_total{route="/v1/chat/completions",status="2xx"} 5'), width
    ).splitlines():
        assert len(line) <= width


def test_a_page_shows_what_is_wrong() -> None:
    text = page(frame_of(MODEL, 'breaker_open{model="m"} 1', 'http_requests_total{status="5xx",route="/r"} 9'), 120)
    assert "breaker open" in text
    assert "4.50 failing/s" in text
    assert "No server answers" in page(frame_of(MODEL), 100, "No server answers at x. Trying again.")


def test_the_busiest_routes_come_first() -> None:
    routes = [f'http_requests_total{{route="/r{n}",status="2xx"}} {n}' for n in range(1, 10)]
    lines = page(frame_of(*routes), 100).splitlines()
    shown = [line.split()[0].strip("│") for line in lines if line.startswith("│/r")]
    assert shown == ["/r9", "/r8", "/r7", "/r6", "/r5", "/r4"]


def test_a_models_name_moves_no_cursor() -> None:
    """Names come from whatever server is asked."""
    text = page(frame_of('slots{model="a\x1b[2Jb[red]c"} 1'), 100)
    assert "\x1b" not in text
    assert "[red]" in text, "nor is it markup"


# --- servers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    settings = Settings(models=(ModelConfig(name="topped", engine="fake", max_concurrent=3),), allowed_hosts=("*",))
    with server_of(settings) as port:
        yield port


def ask(port: int, model: str = "topped", text: str = "hello") -> None:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": text}]}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", body, {"content-type": "application/json"}
    )
    urllib.request.urlopen(request).close()


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["top", *arguments])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_once_against_a_server_that_is_working(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    top = Top(Server(f"http://127.0.0.1:{port}/v1"))
    top.scrape()
    assert top.frame is None
    with ThreadPoolExecutor(8) as askers:
        list(askers.map(lambda _: ask(port), range(40)))
    top.scrape()
    assert top.frame is not None
    model = next(model for model in top.frame.models if model.name == "topped")
    assert model.requests_per_s * top.frame.over_s == pytest.approx(40)
    assert model.tokens_per_s > model.requests_per_s
    assert (model.state, model.engine, model.slots, model.running) == ("ready", "fake", 3, 0)
    assert model.ttft_p50_s is not None
    assert {route: per_s for route, per_s, _ in top.frame.routes}["/v1/chat/completions"] > 0
    # A request is counted when all of its answer has been sent, so the last of each asker may come later.
    # Beside them the first scrape's own two.
    assert 40 - 8 <= round(top.frame.http_per_s["2xx"] * top.frame.over_s) <= 40 + 2
    assert top.frame.up_s is not None
    assert top.frame.rss_bytes > 2**20


def test_once_as_a_page_and_as_json(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{port}"
    status, out, err = shown(capsys, "--once", "--interval", "0.1", "--url", url)
    assert (status, err) == (0, "")
    assert row_of(out, "topped")[:3] == ["topped fake", "ready", "0/3"]
    status, out, _ = shown(capsys, "--once", "--json", "--interval", "0.1", "--url", f"{url}/v1")
    assert status == 0
    told = json.loads(out)
    assert [model["slots"] for model in told["models"] if model["name"] == "topped"] == [3]


def test_a_server_that_is_away_is_told_and_tried_again(port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        away = probe.getsockname()[1]
    top = Top(Server(f"http://127.0.0.1:{away}"))
    top.scrape()
    assert top.problem == f"No server answers at http://127.0.0.1:{away}."
    assert "Trying again" in str(top.view(80))
    top.server = Server(f"http://127.0.0.1:{port}")
    top.scrape()
    top.scrape()
    assert top.problem is None
    assert top.frame is not None
    top.server = Server(f"http://127.0.0.1:{away}")
    top.scrape()
    out = io.StringIO()
    Console(file=out, width=200, color_system=None).print(top.view(200))
    assert "No server answers" in out.getvalue()
    assert "topped" in out.getvalue(), "what was last known stays"


def test_once_against_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    status, out, err = shown(capsys, "--once", "--url", url)
    assert (status, out, err) == (1, "", f"sightline: No server answers at {url}.\n")


class Standin(ThreadingHTTPServer):
    """Answers each path with a status and a text, and remembers the keys that came."""

    def __init__(self, answers: dict[str, tuple[int, str]]) -> None:
        keys = self.keys = list[str | None]()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                keys.append(self.headers.get("authorization"))
                status, text = answers.get(self.path, (404, ""))
                self.send_response(status)
                self.send_header("content-length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def standin(answers: dict[str, tuple[int, str]]) -> Iterator[Standin]:
    with Standin(answers) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "text", "hint"),
    [
        (401, "", "SIGHTLINE_API_KEY"),
        (403, "", "admin"),
        (404, "", "admin listener"),
        (421, "", "allowed_hosts"),
        (500, "", "answers 500"),
        (302, "", "answers 302"),
        (200, "<html>", "not from a Sightline server"),
    ],
)
def test_what_a_server_says_instead(status: int, text: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with standin({"/metrics": (status, text)}) as server:
        code, _, err = shown(capsys, "--once", "--url", server.url)
    assert code == 1
    assert hint in err


def test_the_key_of_the_environment_and_a_listener_without_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_API_KEY", "sk-1")
    with standin({"/metrics": (200, "sightline_" + MODEL + "\n")}) as server:
        top = Top(Server(server.url))
        top.scrape()
        top.scrape()
    assert top.frame is not None
    assert [(model.name, model.engine) for model in top.frame.models] == [("m", None)]
    assert set(server.keys) == {"Bearer sk-1"}


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://user:pw@x", "http://x:99999"])
def test_no_address(url: str) -> None:
    with pytest.raises(InvalidRequest, match="8000"):
        Server(url)


def test_every_model_has_a_row() -> None:
    text = page(frame_of('slots{model="a"} 1', 'slots{model="b"} 2'), 90)
    assert row_of(text, "0/1")[0] == "a"
    assert row_of(text, "0/2")[0] == "b"


# --- live ------------------------------------------------------------------------------------------------------------


def test_frames_as_lines_of_json_until_it_is_interrupted(
    port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    naps = iter([None, None, None])

    def nap(_: float) -> None:
        if next(naps, "over") == "over":
            raise KeyboardInterrupt

    monkeypatch.setattr("sightline.cli.top.time.sleep", nap)
    status, out, err = shown(capsys, "--json", "--url", f"http://127.0.0.1:{port}")
    assert (status, err) == (0, "")
    assert len([json.loads(line) for line in out.splitlines()]) == 3, "the first scrape makes no frame"


@pytest.mark.skipif(not hasattr(os, "forkpty"), reason="there are no terminals here")
def test_live_in_a_terminal_that_changes_its_size(port: int) -> None:
    command = ["-m", "sightline.cli", "top", "--interval", "0.2", "--url", f"http://127.0.0.1:{port}"]
    process, terminal = os.forkpty()
    if process == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # who runs tests in the background has it ignored
        # COLUMNS and LINES, which processes of pytest-xdist have, would count for more than the terminal's size.
        kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        os.execve(sys.executable, [sys.executable, *command], {**kept, "TERM": "xterm-256color"})

    def resize(columns: int) -> None:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def read_until(pattern: str) -> None:
        """Raises `OSError` when it has ended without saying that."""
        seen = b""
        while not re.search(pattern, re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", seen).decode(errors="ignore")):
            seen += os.read(terminal, 65536)

    try:
        resize(160)
        read_until("╭[─┬]{158}╮")
        read_until("restarts")
        resize(80)
        read_until("╭[─┬]{78}╮")
        read_until("topped")
        os.kill(process, signal.SIGINT)
        with pytest.raises(OSError, match="Input/output error"):  # the terminal's other end is gone
            read_until("never said")
        assert os.waitpid(process, 0)[1] == 0
    finally:
        os.close(terminal)
