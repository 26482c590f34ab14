"""`--workers 2`: real processes, asked by real clients."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.frontends.running import (
    AT_ONCE,
    BY_RATE,
    ONCE,
    RATE,
    Running,
    descendants,
    is_ready,
    kill,
    lives,
    running,
    wait_for,
)

ROOT = Path(__file__).parent.parent.parent
PICTURE = (
    "data:image/png;base64,"
    + base64.b64encode((ROOT / "examples" / "pictures" / "red-circle.png").read_bytes()).decode()
)

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("server")) as server:
        yield server


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **more}


async def mixed(client: httpx.AsyncClient, number: int) -> None:
    """One request of some dialect; raises unless it was answered with what the engine has seen of it."""
    text = f"number {number}"
    picture = {"type": "image_url", "image_url": {"url": PICTURE}}
    source = {"type": "base64", "media_type": "image/png", "data": PICTURE.partition(",")[2]}
    match number % 6:
        case 0:
            reply = await client.post("/v1/chat/completions", json=chat(text))
        case 1:
            reply = await client.post("/v1/chat/completions", json=chat(text, stream=True))
            assert reply.text.endswith("data: [DONE]\n\n")
            said = "".join(part.partition('"content":"')[2].partition('"')[0] for part in reply.text.split("\n"))
            assert said == f"I see no pictures. You said: {text}"
            text = ""
        case 2:
            content = [{"type": "text", "text": text}, picture]
            reply = await client.post(
                "/v1/chat/completions", json={"model": "fake", "messages": [{"role": "user", "content": content}]}
            )
            assert "1 picture: 480x360" in reply.text
            assert "mostly" in reply.text
        case 3:
            content = [{"type": "text", "text": text}, {"type": "image", "source": source}]
            reply = await client.post(
                "/v1/messages",
                json={"model": "fake", "max_tokens": 50, "messages": [{"role": "user", "content": content}]},
            )
            assert "1 picture: 480x360" in reply.text
        case 4:
            reply = await client.post("/v1/embeddings", json={"model": "fake", "input": text})
            assert len(reply.json()["data"][0]["embedding"]) == 64
            text = ""
        case _:
            reply = await client.post("/api/chat", json={**chat(text), "stream": False})
    assert reply.status_code == 200, reply.text
    assert text in reply.text


async def count(server: Running, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels, from the listener for admins."""
    total = 0.0
    async with server.client() as client:
        told = await client.get(f"{server.admin_url}/metrics")
        assert (await client.get("/metrics")).status_code == 404
    for line in told.text.splitlines():
        if line.startswith((name + "{", name + " ")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
            total += float(line.rpartition(" ")[2])
    return total


async def test_two_hundred_requests_of_several_dialects(server: Running) -> None:
    fronts = [psutil.Process(pid) for pid in server.of("front")]
    assert len(fronts) == 2
    before = [sum(front.cpu_times()[:2]) for front in fronts]
    async with server.client() as client:
        counted = await count(server, "sightline_http_requests_total", method="POST")
        await asyncio.gather(*(mixed(client, number) for number in range(200)))
        assert await count(server, "sightline_http_requests_total", method="POST") - counted == 200
        assert await count(server, "sightline_requests_running") == 0
        assert await count(server, "sightline_build_info") == 1
    used = [sum(front.cpu_times()[:2]) - then for front, then in zip(fronts, before, strict=True)]
    assert min(used) > 0, "one of the two did nothing"


async def test_a_rate_is_one_for_all_front_ends(server: Running) -> None:
    async with server.client(BY_RATE) as client:
        replies = await asyncio.gather(
            *(client.post("/v1/chat/completions", json=chat("hi")) for _ in range(2 * RATE))
        )  # fmt: skip
    assert Counter(reply.status_code for reply in replies) == {200: RATE, 429: RATE}
    assert all("retry-after" in reply.headers for reply in replies if reply.status_code == 429)


async def test_requests_at_once_are_counted_over_all_front_ends_and_given_back(server: Running) -> None:
    slow = chat("[[fake: slow 0.02]] one two three four five six")
    async with server.client(AT_ONCE) as client:
        for _ in range(2):
            replies = await asyncio.gather(*(client.post("/v1/chat/completions", json=slow) for _ in range(12)))
            assert Counter(reply.status_code for reply in replies) == {200: ONCE, 429: 12 - ONCE}


async def test_a_conversation_goes_on_whichever_front_end_is_asked(server: Running) -> None:
    answers = []
    async with server.client() as client:
        first = (await client.post("/v1/responses", json={"model": "fake", "input": "my name is Ada"})).json()
    for _ in range(8):
        async with server.client() as client:  # a connection of its own
            body = {"model": "fake", "input": "and?", "previous_response_id": first["id"]}
            answers.append((await client.post("/v1/responses", json=body)).json())
    assert {answer["status"] for answer in answers} == {"completed"}
    assert len({answer["usage"]["input_tokens"] for answer in answers}) == 1
    assert answers[0]["usage"]["input_tokens"] > first["usage"]["input_tokens"]


async def test_what_runs_in_the_background_is_found_from_everywhere(server: Running) -> None:
    body = {"model": "fake", "input": "[[fake: slow 0.02]] in the background", "background": True}
    async with server.client() as client:
        begun = (await client.post("/v1/responses", json=body)).json()
    assert begun["status"] == "queued"
    states: list[str] = []
    while "completed" not in states:
        async with server.client() as client:
            states.append((await client.get(f"/v1/responses/{begun['id']}")).json()["status"])
    assert set(states) <= {"queued", "in_progress", "completed"}
    async with server.client() as client:
        events = (await client.get(f"/v1/responses/{begun['id']}", params={"stream": True})).text
        assert "response.completed" in events
        assert (await client.delete(f"/v1/responses/{begun['id']}")).json()["deleted"]
        assert (await client.get(f"/v1/responses/{begun['id']}")).status_code == 404


async def test_files_and_batches_are_everybodys(server: Running) -> None:
    picture = base64.b64decode(PICTURE.partition(",")[2])
    async with server.client() as client:
        sent = await client.post("/v1/files", data={"purpose": "vision"}, files={"file": ("red.png", picture)})
    part = {"type": "input_image", "file_id": sent.json()["id"]}
    content = [{"type": "input_text", "text": "what is this?"}, part]
    body = {"model": "fake", "input": [{"role": "user", "content": content}]}
    for _ in range(4):
        async with server.client() as client:
            reply = await client.post("/v1/responses", json=body)
            assert "480x360" in reply.text
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": chat(f"line {number}")}
        for number in range(5)
    ]
    text = "\n".join(map(json.dumps, lines)).encode()
    async with server.client() as client:
        file = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("lines.jsonl", text)})
        batch = {"input_file_id": file.json()["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        made = (await client.post("/v1/batches", json=batch)).json()
    async with asyncio.timeout(10):
        while made["status"] != "completed":
            async with server.client() as client:
                made = (await client.get(f"/v1/batches/{made['id']}")).json()
    async with server.client() as client:
        output = (await client.get(f"/v1/files/{made['output_file_id']}/content")).text
    assert sorted(json.loads(line)["custom_id"] for line in output.splitlines()) == [str(n) for n in range(5)]


def clients(pid: int) -> int:
    """How many a front end has."""
    return sum(it.status == psutil.CONN_ESTABLISHED for it in psutil.Process(pid).net_connections("tcp"))


async def test_a_front_end_that_is_killed_takes_only_its_own_streams(server: Running) -> None:
    async with server.client() as asking:
        async with server.client() as client:
            slow = chat("[[fake: slow 0.03]] " + "word " * 100, stream=True)
            ended: Counter[str] = Counter()
            begun = 0

            async def follow() -> None:
                nonlocal begun
                text = ""
                try:
                    async with client.stream("POST", "/v1/chat/completions", json=slow) as reply:
                        async for part in reply.aiter_text():
                            begun += not text
                            text += part
                except httpx.HTTPError:
                    ended["broken"] += 1
                else:
                    ended["whole" if text.endswith("data: [DONE]\n\n") else "short"] += 1

            before = server.of("front")
            following = [asyncio.create_task(follow()) for _ in range(24)]
            while begun < len(following):
                await asyncio.sleep(0.01)
                if begun == len(following) and not all(map(clients, before)):  # one took them all: they share a socket
                    following.append(asyncio.create_task(follow()))
            kill(before[0])
            await asyncio.gather(*following)
        assert ended["short"] == 0
        assert ended["whole"] + ended["broken"] == len(following)
        assert ended["whole"] > 0
        assert ended["broken"] > 0
        wait_for(lambda: len(server.of("front")) == 2, 10)
        assert len(set(server.of("front")) & set(before)) == 1
        assert await count(server, "sightline_requests_running") == 0
        await asyncio.gather(*(mixed(asking, number) for number in range(12)))


async def test_front_ends_are_replaced_with_the_new_configuration_and_nobody_notices(server: Running) -> None:
    """Figure 20, shorter: `python -m sightline.bench.frontends` has the whole."""
    host = {"host": "api.example"}
    whole = server.file.read_text()
    before = set(server.of("front"))
    failed: list[str] = []
    answered = 0
    enough = asyncio.Event()

    async def ask(client: httpx.AsyncClient) -> None:
        nonlocal answered
        while not enough.is_set():
            try:
                reply = await client.post("/v1/chat/completions", json=chat("hello"))
                if reply.status_code != 200:
                    failed.append(reply.text)
            except httpx.HTTPError as error:
                failed.append(repr(error))
            answered += 1

    server.file.write_text(whole + "allowed_hosts: [localhost, 127.0.0.1, api.example]\n")
    async with server.client() as client:
        assert (await client.get("/v1/models", headers=host)).status_code == 421
        asking = [asyncio.create_task(ask(client)) for _ in range(4)]
        server.process.send_signal(signal.SIGHUP)
        while set(server.of("front")) & before:
            await asyncio.sleep(0.02)
        enough.set()
        await asyncio.gather(*asking)
        assert (await client.get("/v1/models", headers=host)).status_code == 200
    assert not failed
    assert answered > 100
    # Those that were replaced may still wait for clients; those in their place are looked after all the same.
    (first, second) = set(server.of("front")) - before
    kill(first)
    wait_for(lambda: len(set(server.of("front")) - before - {first, second}) == 1, 5)
    server.file.write_text(whole)


async def test_a_configuration_that_cannot_be_used_changes_nothing(server: Running) -> None:
    whole = server.file.read_text()
    before = server.of("front")
    server.file.write_text(whole + "allowed_hosts: 5\n")
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: server.logged("the configuration stays as it was, and nothing is replaced") == 1, 10)
    async with server.client() as client:
        await mixed(client, 0)
    assert server.of("front") == before
    server.file.write_text(whole)


async def test_when_the_core_dies_streams_are_told_and_everything_comes_back(server: Running) -> None:
    async with server.client() as client:
        before = descendants(server.process.pid)
        (core,) = server.of("core")
        slow = chat("[[fake: slow 0.05]] " + "word " * 100, stream=True)
        async with client.stream("POST", "/v1/chat/completions", json=slow) as reply:
            text = ""
            async for part in reply.aiter_text():
                if not text:
                    kill(core)
                text += part
        assert '"error"' in text
        assert "[DONE]" not in text
    wait_for(lambda: server.of("core") not in ([], [core]) and is_ready(server.url), 20)
    wait_for(lambda: not any(map(lives, before)), 10)
    async with server.client() as client:
        await asyncio.gather(*(mixed(client, number) for number in range(12)))


async def test_a_parent_that_is_killed_leaves_nobody(tmp_path: Path) -> None:
    with running(tmp_path, ready=False) as server:
        wait_for(lambda: len(server.of("front")) == 2 and len(descendants(server.process.pid)) > 3, 20)
        family = descendants(server.process.pid)
        os.kill(server.process.pid, signal.SIGKILL)
        wait_for(lambda: not any(map(lives, family)), 10)


async def test_sigterm_lets_streams_end_and_leaves_nobody(server: Running) -> None:
    """The last: the server is no more."""
    family = descendants(server.process.pid)
    async with server.client() as client:
        slow = chat("[[fake: slow 0.05]] one two three four five six seven", stream=True)
        async with client.stream("POST", "/v1/chat/completions", json=slow) as reply:
            text = ""
            async for part in reply.aiter_text():
                if not text:
                    server.process.send_signal(signal.SIGTERM)
                text += part
    assert text.endswith("data: [DONE]\n\n")
    assert server.process.wait(10) == 0
    wait_for(lambda: not any(map(lives, family)), 5)
