"""Asks a server the cases through the OpenAI SDK: the evaluation measures what a client gets."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
from openai.types.chat import ChatCompletionContentPartParam, ChatCompletionMessageParam

from training.peek.evaluation.answers import is_refusal, is_right
from training.peek.evaluation.cases import Case, Turn
from training.peek.evaluation.files import encode, media_type

_MAX_TOKENS = 48
_DRAWN_AT_ONCE = 2
"""A picture of 16 million pixels takes some hundred MB while it is drawn."""
_READY_WITHIN_S = 120.0


@dataclass(frozen=True, slots=True)
class Result:
    case: Case
    answer: str
    """What the model said; empty when the request failed."""
    error: str | None = None
    """Why the request failed; a failed request is a wrong answer."""
    digests: tuple[str, ...] = ()
    """SHA-256 of each picture's file, in order."""
    seconds: float = 0.0
    """From the request to the whole answer, while others were in progress."""

    @property
    def right(self) -> bool:
        return self.error is None and is_right(self.case.task, self.answer, self.case.truth)

    @property
    def refused(self) -> bool:
        return self.error is None and is_refusal(self.answer)


async def ask_all(
    cases: Sequence[Case],
    client: openai.AsyncOpenAI,
    *,
    model: str,
    concurrency: int = 8,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Result]:
    """Every case's result, in the order of the cases; greedy, `concurrency` requests at once.

    `progress` is told the number of answers after each one.
    """
    free, drawing = asyncio.Semaphore(concurrency), asyncio.Semaphore(_DRAWN_AT_ONCE)
    done = 0

    async def one(case: Case) -> Result:
        nonlocal done
        async with free:
            async with drawing:
                files = await asyncio.to_thread(lambda: [encode(picture) for picture in case.pictures])
            result = await _ask(case, files, client, model)
        done += 1
        progress(done)
        return result

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(case)) for case in cases]
    return [task.result() for task in tasks]


async def _ask(case: Case, files: Sequence[bytes], client: openai.AsyncOpenAI, model: str) -> Result:
    digests = tuple(f"sha256:{hashlib.sha256(file).hexdigest()}" for file in files)
    began = time.perf_counter()
    try:
        reply = await client.chat.completions.create(
            model=model, messages=to_messages(case, files), temperature=0, max_tokens=_MAX_TOKENS
        )
    except openai.OpenAIError as error:
        return Result(case, "", f"{type(error).__name__}: {error}", digests, time.perf_counter() - began)
    return Result(case, reply.choices[0].message.content or "", None, digests, time.perf_counter() - began)


def to_messages(case: Case, files: Sequence[bytes]) -> list[ChatCompletionMessageParam]:
    """The conversation up to the question; `files` are the case's pictures in their order, encoded."""
    messages: list[ChatCompletionMessageParam] = []
    rest = iter(files)
    for turn in case.turns:
        messages.append({"role": "user", "content": _content(turn, [next(rest) for _ in turn.pictures])})
        if turn is not case.turns[-1]:
            messages.append({"role": "assistant", "content": turn.answer})
    return messages


def _content(turn: Turn, files: Sequence[bytes]) -> list[ChatCompletionContentPartParam]:
    """Pictures as data URIs in their order, the text before or after them."""
    text: ChatCompletionContentPartParam = {"type": "text", "text": turn.text}
    pictures: list[ChatCompletionContentPartParam] = [
        {
            "type": "image_url",
            "image_url": {"url": f"data:{media_type(picture)};base64,{base64.b64encode(file).decode()}"},
        }
        for picture, file in zip(turn.pictures, files, strict=True)
    ]
    return [text, *pictures] if turn.text_first else [*pictures, text]


@contextmanager
def serve(arguments: Sequence[str], log: Path) -> Iterator[str]:
    """Runs `sightline serve ARGUMENTS` on a free port, its output in `log`; gives its base URL once it is ready.

    It is ended afterwards. Raises `RuntimeError` when it ends by itself or is not ready in two minutes.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "sightline.cli", "serve", "--port", str(port), *arguments]
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        _await_ready(server, f"http://127.0.0.1:{port}/ready", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _await_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with status {server.returncode} before it was ready; see {log}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:  # not listening yet, or 503: still loading
            time.sleep(0.2)
    raise RuntimeError(f"the server was not ready within {_READY_WITHIN_S:.0f} s; see {log}")
