"""Asks a server the cases through the OpenAI SDK: the evaluation measures what a client gets."""

from __future__ import annotations

import asyncio
import base64
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
from openai.types.chat import ChatCompletionContentPartParam, ChatCompletionUserMessageParam

from training.peek.evaluation.answers import is_right
from training.peek.evaluation.drawing import encode, media_type
from training.peek.evaluation.questions import Case

_MAX_TOKENS = 48
_READY_WITHIN_S = 120.0


@dataclass(frozen=True, slots=True)
class Result:
    case: Case
    answer: str
    """What the model said; empty when the request failed."""
    error: str | None = None
    """Why the request failed; a failed request is a wrong answer."""

    @property
    def right(self) -> bool:
        return self.error is None and is_right(self.case.task, self.answer, self.case.truth)


async def ask_all(
    cases: Sequence[Case], client: openai.AsyncOpenAI, *, model: str, concurrency: int = 8
) -> list[Result]:
    """Every case's result, in the order of the cases; greedy, `concurrency` requests at once."""
    free = asyncio.Semaphore(concurrency)

    async def one(case: Case) -> Result:
        async with free:
            message = await asyncio.to_thread(to_message, case)
            try:
                reply = await client.chat.completions.create(
                    model=model, messages=[message], temperature=0, max_tokens=_MAX_TOKENS
                )
            except openai.OpenAIError as error:
                return Result(case, "", f"{type(error).__name__}: {error}")
            return Result(case, reply.choices[0].message.content or "")

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(case)) for case in cases]
    return [task.result() for task in tasks]


def to_message(case: Case) -> ChatCompletionUserMessageParam:
    """The case as one user message: pictures as data URIs in their order, the question before or after them."""
    text: ChatCompletionContentPartParam = {"type": "text", "text": case.question}
    pictures: list[ChatCompletionContentPartParam] = [
        {
            "type": "image_url",
            "image_url": {"url": f"data:{media_type(scene)};base64,{base64.b64encode(encode(scene)).decode()}"},
        }
        for scene in case.scenes
    ]
    return {"role": "user", "content": [text, *pictures] if case.text_first else [*pictures, text]}


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
