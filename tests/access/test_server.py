"""A server as `sightline serve` starts it: which ports are open, and what it knows of keys after `kill -9`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from sightline.access.keyfile import KeyFile, today
from tests.access.keyed import add_key

CHAT = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}


@contextmanager
def server(file: Path) -> Iterator[tuple[psutil.Process, list[str]]]:
    """The process, and the addresses that it tells."""
    command = [sys.executable, "-m", "sightline.cli", "serve", str(file), "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = [process.stdout.readline().split("http://")[1].split("/")[0] for _ in range(2)]
            until(lambda: ask(f"http://{told[0]}/ready")[0] == 200)
            yield psutil.Process(process.pid), told
        finally:
            process.kill()


def ask(url: str, key: str = "", body: Any = None) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"} if key else {}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=20) as reply:
            raw = reply.read()
            return reply.status, json.loads(raw) if raw[:1] == b"{" else {}
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")
    except OSError:
        return 0, {}


def until(done: Any) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.timeout(90)
def test_its_ports_and_its_budgets(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(
        f"models: [{{name: m, engine: fake}}]\ndata_dir: {tmp_path}/data\nport: 0\nadmin: {{port: 0}}\n"
        f"access: {{file: {tmp_path}/keys.db}}\nimages: {{decoders: 1}}\n"
    )
    keys = KeyFile(tmp_path / "keys.db")
    key = add_key(keys, tokens_per_day=40)
    with server(file) as (process, (main, admin)):
        listening = {
            f"{each.laddr.ip}:{each.laddr.port}"
            for one in (process, *process.children(recursive=True))
            for each in one.net_connections("inet")
            if each.status == psutil.CONN_LISTEN
        }
        assert listening == {main, admin}, "and nothing else, of it and of all its processes"
        assert ask(f"http://{main}/metrics", key)[0] == 403
        assert ask(f"http://{admin}/metrics")[0] == 200
        assert ask(f"http://{main}/v1/models")[0] == 401
        status, reply = ask(f"http://{main}/v1/chat/completions", key, CHAT)
        assert status == 200
        used = reply["usage"]["total_tokens"]
        until(lambda: [each.tokens for each in keys.used(today()).values()] == [used])  # within about a second
        process.kill()
    with server(file) as (_, (main, _)):
        status, reply = ask(f"http://{main}/v1/chat/completions", key, {**CHAT, "max_tokens": 40 - used})
        assert (status, reply["error"]["code"]) == (429, "insufficient_quota")
        assert f"of which {40 - used} are left" in reply["error"]["message"]
