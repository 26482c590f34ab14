"""Who does not read its answer: what waits for it is bounded, in the replica and in the ingress, on a real Ray."""

from __future__ import annotations

import json
import socket
import time
from http.client import HTTPConnection, HTTPResponse
from itertools import pairwise

import pytest

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

from tests.cluster.real import Cluster, processes  # noqa: E402  # it needs Ray

TOKENS = 120_000
"""Of an answer: 30 MB on the wire. The sockets on its way, of which there are four, grow to hold 16 by themselves."""
MOST_BYTES = 10 * 2**20
"""A window, and what a process grows by anyway."""


@pytest.fixture(scope="module")
def cluster(machines: Cluster) -> Cluster:
    little = {"ray_actor_options": {"num_cpus": 0.1}}
    options = {"step_s": 0.0, "context_length": 500_000}
    machines.deploy(
        {
            "settings": {"models": [{"name": "fake", "engine": "fake", "options": options}]},
            "deployments": {"fake": little},
            "ingress": little,
        }
    )
    return machines


def ask(cluster: Cluster, tokens: int) -> HTTPResponse:
    """An answer of so many tokens, which is on its way: each is the time at which it was made."""
    asked = [{"role": "user", "content": f"[[fake: clock {tokens}]]"}]
    connection = HTTPConnection("127.0.0.1", cluster.port, timeout=200)
    connection.sock = socket.socket()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # little waits here
    connection.sock.settimeout(200)
    connection.sock.connect(("127.0.0.1", cluster.port))
    body = json.dumps({"model": "fake", "stream": True, "messages": asked})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    return connection.getresponse()


def read(answer: HTTPResponse) -> list[float]:
    """The times that are the rest of the answer."""
    text = ""
    with answer:
        for line in answer:
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                assert "error" not in chunk, chunk
                text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    return [float(word.partition("@")[0]) for word in text.split()]


def memory() -> int:
    """Of the processes that an answer goes through."""
    return sum(p.memory_info().rss for name in ("ingress", "model:fake") for p in processes(name))


def test_a_reader_that_stops_holds_a_window_and_no_answer(cluster: Cluster) -> None:
    """And gets all of it when it reads on: the last token was made after it had begun to."""
    assert len(read(ask(cluster, 2000))) == 2000
    before = last = memory()
    answer = ask(cluster, TOKENS)
    quiet = 0
    while quiet < 4:
        time.sleep(1)
        now = memory()
        quiet, last = (quiet + 1 if abs(now - last) < 2**18 else 0), now
    print(f"grown by {(last - before) / 2**20:.1f} MiB")
    stopped = time.monotonic()
    assert last - before < MOST_BYTES
    times = read(answer)
    assert len(times) == TOKENS
    assert all(sooner <= later for sooner, later in pairwise(times))
    assert times[-1] > stopped
