"""Figures of a cluster: from a server that says what it is told to, and from answers written by hand."""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from sightline.bench.cluster import report
from sightline.bench.cluster.load import Answer, Body, Clients, Load
from sightline.bench.cluster.measure import Latency, Measured, Point, Scaling, Way, to_failover, to_point, to_way
from sightline.bench.cluster.processes import WHO
from sightline.cluster.simulation import measured as simulation

DOCS = Path(__file__).parents[2] / "docs"


# --- the clients -----------------------------------------------------------------------------------------------------


def serve(words: int, broken: int, ports: Connection) -> None:
    """Answers in chunks that are cut in odd places, each word 20 ms after it was made; one of `broken` answers lacks
    its last word."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = 0
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            await reader.readexactly(int(length.split(b":")[1]))
            number += 1
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for word in range(words - (number % broken == 0)):
                event = f'data: {{"content": " {time.monotonic():.6f}@{100 + word}"}}\n\n'.encode()
                await asyncio.sleep(0.02)
                for piece in (event[:21], event[21:]):
                    writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    await writer.drain()
            writer.write(b'24\r\ndata: {"usage":{"prompt_tokens": 59}}\n\r\n0\r\n\r\n')
            await writer.drain()
            ports.send("answered")

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        ports.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def server(words: int, broken: int = 1 << 30) -> Iterator[tuple[int, Connection]]:
    """Its port, and what says of each answer that it was sent."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(words, broken, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv(), ours
    finally:
        process.kill()
        process.join()


def test_clients_learn_when_each_word_was_made_and_by_whom() -> None:
    with server(words=3) as (port, _):
        answers = Clients(Load(ports=(port,), clients=2, words=3, requests=4)).finish()
    assert len(answers) == 8
    assert {answer.wrong for answer in answers} == {""}
    for answer in answers:
        assert answer.engine == 102
        assert answer.prompt_tokens == 59
        assert all(arrived - made > 0.015 for made, arrived in zip(answer.made, answer.arrived, strict=True))
        assert answer.asked < answer.arrived[0] < answer.arrived[1] < answer.ended


def test_what_lacks_a_word_is_not_an_answer() -> None:
    with server(words=3, broken=2) as (port, _):
        answers = Clients(Load(ports=(port,), clients=1, words=3, requests=4)).finish()
    assert [answer.wrong for answer in answers] == ["", "2 words", "", "2 words"]


def test_servers_are_asked_in_turn_until_the_clients_are_stopped() -> None:
    with server(words=1) as (one, _), server(words=1) as (other, answered):
        clients = Clients(Load(ports=(one, other), clients=1, words=1))
        for _ in range(2):
            answered.recv()
        answers = clients.stop()
    assert [answer.port for answer in answers[:4]] == [one, other, one, other]


def test_no_two_requests_have_the_same_picture() -> None:
    body = Body(Load(ports=(1,), clients=1, words=5, picture_bytes=200_000))
    one, other = (json.loads(body.request(1, number).partition(b"\r\n\r\n")[2]) for number in (1, 2))
    pictures = [each["messages"][0]["content"][0]["image_url"]["url"] for each in (one, other)]
    assert pictures[0] != pictures[1]
    assert [len(url) for url in pictures] == [pytest.approx(200_000, abs=100)] * 2


# --- the figures -----------------------------------------------------------------------------------------------------


def answers(clients: int, *, rate: float = 10.0, late: float = 0.01, words: int = 40, engine: int = 1) -> list[Answer]:
    """Of clients that each ask once, at the second 0."""
    told = []
    for client in range(clients):
        made = [(word + 1) / rate for word in range(words)]
        arrived = [at + late for at in made]
        told.append(Answer(1, client, 0.0, arrived[-1], made, arrived, engine, 59))
    return told


def spent(seconds: float) -> dict[str, float]:
    return dict.fromkeys(WHO, seconds)


def a_point(replicas: int, clients: int) -> Point:
    return to_point(replicas, 1, answers(clients), spent(0.1), spent(0.01), 1.0, 3.0)


def test_throughput_is_of_the_time_in_which_all_clients_were_at_it() -> None:
    point = a_point(1, 8)
    assert point.tokens_per_s == pytest.approx(80.0)
    assert point.delay_p99_s == pytest.approx(0.01)
    assert point.ttft_p50_s == pytest.approx(0.11)
    assert point.cpu_ms_a_token["ingress"] == pytest.approx(1000 * (0.05 - 0.01) / 80)


def test_what_the_simulation_is_told_is_the_way_out_and_the_way_back() -> None:
    """Steps take 52 ms, words 4 ms to their client; clients that hand on a slot have it each 30 ms."""
    made = [0.3 + 0.052 * word for word in range(40)]
    paced = [Answer(1, 0, 0.0, 3.0, made, [at + 0.004 for at in made], 1, 600) for _ in range(3)]
    quick = [Answer(1, 0, turn, turn + 1, [turn + 0.036], [turn + 0.04], 1, 600) for turn in range(5)]
    handed = [Answer(1, turn % 3, 0.0, 9.0, [0.03 * turn], [0.03 * turn + 0.004], 1, 600) for turn in range(30)]
    told = to_way(paced, quick, handed)
    assert (told.step_s, told.back_s) == (pytest.approx(0.052), pytest.approx(0.004))
    assert told.out_s == pytest.approx(0.03 - 0.004)
    assert told.before_s == pytest.approx(0.036 - 0.026)


def test_linear_is_what_the_smallest_cluster_did_so_many_times() -> None:
    one, four = a_point(1, 8), a_point(4, 28)
    assert report.of_linear(four, [one, four]) == pytest.approx(28 / 32)
    assert "not met" in report.to_text(Measured(2, 0.0, points=[one, four]))


def test_the_time_of_a_failover_is_that_of_the_client_that_waited_longest() -> None:
    def one(client: int, asked: float, ended: float, engine: int, wrong: str = "") -> Answer:
        return Answer(1, client, asked, ended, [ended], [ended], engine, 59, wrong)

    told = [
        one(0, 0.0, 0.2, 1), one(1, 0.0, 0.2, 2), one(0, 0.9, 1.1, 1), one(1, 0.9, 1.9, 2, "error"),
        one(1, 1.9, 2.1, 1), one(0, 5.0, 5.2, 3),
    ]  # fmt: skip
    failed = to_failover(told, killed=1.0)
    assert failed.next_good_s == pytest.approx(2.1 - 1.0 - 0.2)
    assert failed.whole_s == pytest.approx(4.2)
    assert failed.outcomes == {"ok": 5, "error event": 1}


def test_the_simulation_reads_what_is_written(tmp_path: Path) -> None:
    measured = Measured(2, 0.5, points=[a_point(1, 8), a_point(2, 16)])
    measured.way = Way(0.051, 0.01, 0.02, 0.003)
    measured.latency = Latency(9, 0.01, 0.02, 0.015, 0.03, 0)
    measured.scaling = Scaling(1.0, 2.0, math.nan, 3.0)
    page = tmp_path / "bench.md"
    page.write_text("before\n<!-- figures: written by x -->\nold\n<!-- end of figures -->\nafter\n")
    report.write(measured, tmp_path / "bench")
    points = simulation.read(tmp_path / "bench.json")
    assert [point.replicas for point in points] == [1, 2]
    assert {(p.step_s, p.before_s, p.out_s, p.back_s) for p in points} == {(0.051, 0.01, 0.02, 0.003)}
    text = page.read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| a request with a picture of 200 KB, p99 | 20.0 ms | 30.0 ms | 10.0 ms |" in text
