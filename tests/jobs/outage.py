"""Redis killed, and stopped without a word, while a server answers and works: `python -m tests.jobs.outage`."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.jobs.figures import Figure, command
from tests.jobs.kill import Site, StoreName, retrieve, running_site, submit, to_lines, verify

PROMISE = "Redis killed: 503 within 1 s, chat goes on, all is back within 5 s, nothing accepted is lost"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@dataclass(slots=True)
class Seen:
    refusals: int = 0
    slowest_refusal_s: float = 0.0
    slowest_chat_s: float = 0.0
    slowest_return_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


def measure(folder: Path, store: StoreName = "redis", *, outages: int = 5, lines: int = 400) -> Figure:
    seen = Seen()
    with running_site(folder, "redis", with_worker=False) as site:
        while httpx.get(f"{site.server.url}/ready").status_code != 200:
            time.sleep(0.02)
        accepted = [submit(site.server.client, lines)]
        for number in range(outages):
            accepted.append(submit(site.server.client, 3))
            _go_through_one(site, seen, silent=number % 2 == 1)
        deadline = time.monotonic() + 120
        for batch_id in accepted:
            while (batch := retrieve(site.server.client, batch_id, deadline)).status != "completed":
                assert time.monotonic() < deadline, batch
                time.sleep(0.05)
            verify(site.server.client, batch, batch.request_counts.total)
    measured = (
        f"{outages} outages: {seen.refusals} refusals, the slowest after {seen.slowest_refusal_s:.2f} s; chat at most "
        f"{seen.slowest_chat_s:.2f} s; back after at most {seen.slowest_return_s:.2f} s; {len(accepted)} of "
        f"{len(accepted)} accepted batches completed" + "".join(f"; {wrong}" for wrong in seen.wrong)
    )
    met = not seen.wrong and seen.slowest_refusal_s <= 1.0 and seen.slowest_return_s <= 5.0
    return Figure(19, "redis", PROMISE, measured, met)


def _go_through_one(site: Site, seen: Seen, *, silent: bool) -> None:
    redis = site.redis
    assert redis is not None
    assert redis.process is not None
    with httpx.Client(base_url=site.server.url, timeout=10) as client:
        file_id = client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a", to_lines(1))}).json()["id"]
        if silent:
            redis.process.send_signal(signal.SIGSTOP)
        else:
            redis.kill()
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        asked: dict[str, Callable[[], httpx.Response]] = {
            "GET /v1/batches": lambda: client.get("/v1/batches"),
            "GET /v1/files": lambda: client.get("/v1/files"),
            "GET a file": lambda: client.get(f"/v1/files/{file_id}/content"),
            "GET /job": lambda: client.get("/job/job-x"),
            "POST /v1/batches": lambda: client.post("/v1/batches", json=body),
            "POST /v1/files": lambda: client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a", b"x")}),
        }
        for what, ask in asked.items():
            took_s, reply = _timed(ask)
            seen.refusals += 1
            seen.slowest_refusal_s = max(seen.slowest_refusal_s, took_s)
            if reply.status_code != 503 or "retry-after" not in reply.headers:
                seen.wrong.append(f"{what}: {reply.status_code}")
            for path, told in (("/health", client.get("/health")), ("/ready", client.get("/ready"))):
                if told.status_code != 200:
                    seen.wrong.append(f"{path}: {told.status_code}")
            took_s, reply = _timed(lambda: client.post("/v1/chat/completions", json=CHAT))
            seen.slowest_chat_s = max(seen.slowest_chat_s, took_s)
            if reply.status_code != 200:
                seen.wrong.append(f"chat: {reply.status_code}")
        began = time.monotonic()
        if silent:
            redis.process.send_signal(signal.SIGCONT)
        else:
            redis.start()
        while any(client.get(path).status_code != 200 for path in ("/v1/batches", f"/v1/files/{file_id}/content")):
            if time.monotonic() - began > 30:
                break
            time.sleep(0.01)
        seen.slowest_return_s = max(seen.slowest_return_s, time.monotonic() - began)


def _timed(ask: Callable[[], httpx.Response]) -> tuple[float, httpx.Response]:
    began = time.monotonic()
    reply = ask()
    return time.monotonic() - began, reply


if __name__ == "__main__":
    command(__doc__ or "", measure)
