"""The benchmark of gateways measures what it says: right answers, pictures that are new, CPU of the right processes."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from PIL import Image

from sightline.bench.gateway import load, processes, report
from sightline.bench.gateway.cases import Body, Case, body
from sightline.bench.gateway.load import Target, Told
from sightline.bench.gateway.processes import Spent
from sightline.bench.gateway.stub import Stub, streamed, whole


@pytest.fixture
def port() -> Iterator[int]:
    """Of a stub that runs beside the test."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(Stub, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield server.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    server.close()
    loop.close()


def pictures(sent: bytes) -> list[bytes]:
    parts = json.loads(sent)["messages"][0]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [base64.b64decode(url.partition(",")[2], validate=True) for url in urls]


def test_a_body_has_its_size_and_different_pictures_that_decode() -> None:
    asked = body(200_000, 4, "words-8")
    sent = asked.numbered(0)
    assert len(sent) == asked.size == pytest.approx(200_000, rel=0.02)
    files = pictures(sent)
    assert len(set(files)) == 4
    assert {Image.open(io.BytesIO(file)).size for file in files} == {(640, 480)}
    assert asked.numbered(1) == sent, "the same pictures again"


def test_new_pictures_are_new_files_in_every_request() -> None:
    asked = body(200_000, 4, "words-8", new=True)
    files = [*pictures(asked.numbered(1)), *pictures(asked.numbered(2))]
    assert len({bytes(file) for file in files}) == 8
    assert len(asked.numbered(3)) == asked.size


def run(case: Case, port: int) -> Told:
    said: list[object] = []
    asyncio.run(load._drive(case, Target(port), 0.05, 0.3, said.append))
    *marks, told = said
    assert marks == ["begin", "end"]
    assert isinstance(told, Told)
    return told


@pytest.mark.parametrize("stream", [False, True])
def test_clients_take_right_answers_only(port: int, stream: bool) -> None:
    asked = body(2_000, 0, "words-8", stream=stream)
    right = run(Case("right", asked, 8, clients=4), port)
    assert right.errors == 0
    assert right.latencies_s
    wrong = run(Case("wrong", asked, 9, clients=4), port)
    assert wrong.errors > 0
    assert wrong.latencies_s == []
    assert wrong.wrong.startswith("HTTP/1.1 200")


def test_an_unknown_model_is_no_answer(port: int) -> None:
    assert run(Case("unknown", Body((b'{"model": "other"}',)), 8, clients=1), port).errors > 0


def test_paced_words_come_when_they_are_due(port: int) -> None:
    told = run(Case("paced", body(500, 0, "words-4-ms-20", stream=True), 4, clients=2), port)
    assert told.errors == 0
    assert min(told.latencies_s) >= 5 * 0.020 - 0.002, "a head, four words, an end"
    assert min(told.gaps_s) >= 0.015
    assert all(first < whole for first, whole in zip(told.firsts_s, told.latencies_s, strict=True))


def test_the_stubs_answers_are_openais() -> None:
    assert json.loads(whole(2).partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"] == " lorem lorem"
    pieces = b"".join(streamed(3, True)).split(b"data: ")[1:]
    chunks = [json.loads(piece.partition(b"\n")[0]) for piece in pieces[:-1]]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == " lorem" * 3
    assert chunks[-1]["usage"]["completion_tokens"] == 3
    assert pieces[-1].startswith(b"[DONE]")


def test_cpu_is_that_of_the_process_and_all_below_it() -> None:
    busy = "import time; began = time.process_time()\nwhile time.process_time() - began < 0.1: pass\ninput()"
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 10
        while processes.spent(process.pid).own < 0.1 and time.monotonic() < deadline:
            time.sleep(0.02)
        spent = processes.spent(process.pid)
        process.communicate(b"\n")
    assert spent.own >= 0.1
    assert spent.decoders == 0


def test_goals_are_ratios_of_one_run() -> None:
    case = Case("2 KB", Body((b"",)), 8)
    told = Told(latencies_s=[0.002] * 100, firsts_s=[0.001] * 100, gaps_s=[0.0] * 100, wall_s=1.0)
    ours = report.to_measured(report.OURS, case, told, Spent(0.1, 0.0))
    theirs = report.to_measured(report.LITELLM, case, told, Spent(2.0, 0.0))
    assert (ours.cpu_ms, theirs.cpu_ms, ours.p50_ms) == (1.0, 20.0, 2.0)
    goal = report.goals([ours, theirs])[0]
    assert math.isclose(goal.measured or 0, 0.05)
    assert goal.met
    assert not report.goals([ours])[0].met, "what was not measured is not met"
