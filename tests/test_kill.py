"""The engine of a running server is killed at random moments: the server stays up and answers again at once."""

from __future__ import annotations

import base64
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest

from sightline.testing import patience

ROOT = Path(__file__).parent.parent
PICTURE = (ROOT / "examples" / "pictures" / "red-circle.png").read_bytes()
KILLS = 8
BACK_WITHIN_S = 3.0


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, psutil.Process]]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "sightline.cli", "serve", "--port", str(port), "--log-level", "error"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(lambda: get(f"{address}/ready") == 200, 30 * patience())
            yield address, psutil.Process(process.pid)
        finally:
            process.terminate()


def get(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return int(reply.status)
    except OSError:
        return 0


def wait_for(condition: object, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.01)
    raise AssertionError(f"not within {timeout_s} s")


def engine_of(server: psutil.Process) -> psutil.Process | None:
    for child in server.children():
        try:
            if "sightline.engines.worker" in " ".join(child.cmdline()):
                return child
        except psutil.Error:  # it has died, and nobody has asked how yet
            continue
    return None


def lives(process: psutil.Process) -> bool:
    """Whether it runs; a zombie that its new parent has not reaped yet does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def content() -> list[dict[str, object]]:
    """The picture, each time in a file of its own: one that was there when two processes died would be refused."""
    file = base64.b64encode(PICTURE + os.urandom(8)).decode()  # what stands behind a PNG's end is not looked at
    return [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{file}"}},
        {"type": "text", "text": "What colour is the circle?"},
    ]


def ask(client: openai.OpenAI, *, stream: bool, max_tokens: int) -> str:
    """`right`, `wrong`, or how it failed. Long answers ignore the end token, so that there is a decode to kill."""
    try:
        reply = client.chat.completions.create(
            model="peek",
            messages=[{"role": "user", "content": content()}],  # type: ignore[misc, list-item]
            temperature=0,
            max_tokens=max_tokens,
            stream=stream,
            extra_body={"ignore_eos": max_tokens > 8},
        )
        if not stream:
            text = reply.choices[0].message.content or ""
        else:
            text = "".join(c.choices[0].delta.content or "" for c in reply if c.choices)
    except openai.APIStatusError as error:
        return str(error.status_code)
    except openai.APIError:
        return "error event"
    return "right" if text.startswith("red") else "wrong"


@pytest.mark.timeout(180)
def test_the_server_outlives_its_engine(server: tuple[str, psutil.Process]) -> None:
    address, process = server
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=30)
    assert ask(client, stream=False, max_tokens=4) == "right"
    chance = random.Random(7)
    ends: Counter[str] = Counter()
    slowest = 0.0
    for kill in range(KILLS):
        moment = ("idle", "prefill", "decode", "load")[kill % 4]
        asked: list[threading.Thread] = []
        if moment in ("prefill", "decode"):
            for stream in (True, False, True):
                thread = threading.Thread(
                    target=lambda stream=stream: ends.update([ask(client, stream=stream, max_tokens=200)])
                )
                thread.start()
                asked.append(thread)
            time.sleep(chance.uniform(0.0, 0.02) if moment == "prefill" else chance.uniform(0.03, 0.2))
        victim = engine_of(process)
        assert victim is not None
        victim.kill()
        if moment == "load":  # once more, while its successor is loading
            wait_for(lambda dead=victim.pid: (e := engine_of(process)) is not None and e.pid != dead, 5)
            time.sleep(chance.uniform(0.0, 0.3))
            if (successor := engine_of(process)) is not None:
                os.kill(successor.pid, signal.SIGKILL)
        died = time.monotonic()
        assert get(f"{address}/health") == 200
        assert ask(client, stream=bool(kill % 2), max_tokens=4) == "right"
        slowest = max(slowest, time.monotonic() - died)
        for thread in asked:
            thread.join(30)
            assert not thread.is_alive(), "a request hangs"
    assert slowest < BACK_WITHIN_S * patience()
    assert set(ends) <= {"right", "error event", "500", "503"}, ends
    print(f"\n{KILLS} kills: answers again within {slowest:.2f} s; requests under way ended: {dict(ends)}")


def test_the_engine_dies_with_a_killed_server() -> None:
    command = [
        sys.executable,
        "-m",
        "sightline.cli",
        "serve",
        "--port",
        "0",
        "--engine",
        "fake",
        "--log-level",
        "error",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: len(psutil.Process(process.pid).children(recursive=True)) >= 1, 20 * patience())
        time.sleep(0.5)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        wait_for(lambda: not any(map(lives, children)), 2 * patience())
