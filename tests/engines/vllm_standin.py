"""Speaks vLLM's wire, without a model: `vllm serve` as far as our engine uses it.

    PROGRAM serve MODEL --uds PATH --served-model-name NAME ...

It answers with the size and colour of what it sees, one token a word. Pictures are kept by `uuid`, at most four; one
that is named and not held is refused as vLLM does it. `/standin` tells how it was started and what it was sent.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

CONTEXT = 2048
CELL = 28
HELD = 4
NAMES = {(255, 0, 0): "red", (0, 0, 255): "blue", (0, 128, 0): "green"}

arguments = argparse.ArgumentParser()
arguments.add_argument("command")
arguments.add_argument("model")
arguments.add_argument("--uds")
arguments.add_argument("--served-model-name")
options, _ = arguments.parse_known_args()
held: OrderedDict[str, Image.Image] = OrderedDict()
bodies: list[Any] = []


class NotHeld(Exception):
    pass


def see(part: dict[str, Any]) -> Image.Image:
    name = part.get("uuid")
    if part["image_url"] is None:
        if name not in held:
            raise NotHeld
        return held[name]
    assert part["image_url"]["url"].startswith("data:image/png;base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2]))).convert("RGB")
    if name is not None:
        held[name] = picture
        while len(held) > HELD:
            held.popitem(last=False)
    return picture


def prompt(body: dict[str, Any]) -> tuple[list[str], list[Image.Image]]:
    words, pictures = [], []
    for message in body["messages"]:
        words.append(message["role"])
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                words += part["text"].split()
            else:
                pictures.append(see(part))
    return words, pictures


def cells(picture: Image.Image) -> int:
    return (picture.width // CELL) * (picture.height // CELL)


def refuse(status: int, text: str) -> Response:
    return JSONResponse({"error": {"message": text, "type": "BadRequestError", "param": None, "code": status}}, status)


async def chat(request: Request) -> Response:
    body = await request.json()
    bodies.append(body)
    if body["model"] != options.served_model_name:
        return refuse(404, "no such model at /opt/secret/path")
    try:
        words, pictures = prompt(body)
    except NotHeld:
        return refuse(400, "the secret item is not held")
    if "crash" in words:
        os._exit(3)
    colours = [NAMES.get(p.getpixel((p.width // 2, p.height // 2)), "unknown") for p in pictures]  # type: ignore[call-overload]
    seen = [f"{p.width}x{p.height} {colour}" for p, colour in zip(pictures, colours, strict=True)]
    answer = f"I see {'; '.join(seen) or 'nothing'} . The end".split()
    prompt_tokens = len(words) + sum(map(cells, pictures))
    if prompt_tokens >= CONTEXT:  # and an answer that is too long is cut shorter, in silence
        return refuse(400, "too long by a text only")

    async def stream() -> AsyncIterator[str]:
        made, reason, told = 0, "stop", None
        for word in answer:
            if word in body.get("stop", ()):
                told = word
                break
            made += 1
            yield event(choice({"content": word if made == 1 else f" {word}"}))
            if made == body.get("max_tokens"):
                reason = "length"
                break
        yield event(choice({}, finish_reason=reason, stop_reason=told))
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": made, "total_tokens": prompt_tokens + made}
        yield event({"choices": [], "usage": {**usage, "prompt_tokens_details": {"cached_tokens": 1}}})
        yield "data: [DONE]\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream")


def choice(delta: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **fields}]}


def event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


async def tokenize(request: Request) -> Response:
    words, pictures = prompt(await request.json())
    expanded = os.environ.get("STANDIN_EXPANDS") == "1"
    count = len(words) + (sum(map(cells, pictures)) if expanded else len(pictures))
    return JSONResponse({"count": count, "max_model_len": CONTEXT, "tokens": [0] * count})


async def models(request: Request) -> Response:
    return JSONResponse({"data": [{"id": options.served_model_name, "object": "model", "max_model_len": CONTEXT}]})


async def standin(request: Request) -> Response:
    return JSONResponse({"argv": sys.argv, "environment": dict(os.environ), "bodies": bodies})


async def health(request: Request) -> Response:
    return Response()


if __name__ == "__main__":
    print(f"INFO 11-21 12:00:00 [api_server.py:1] pid {os.getpid()} loads", flush=True)
    time.sleep(float(os.environ.get("STANDIN_LOADS_S", "0")))
    if os.environ.get("STANDIN_FAILS"):
        print("ERROR 11-21 12:00:00 [core.py:1] no memory for the model", flush=True)
        sys.exit(1)
    routes = [
        Route("/health", health),
        Route("/v1/models", models),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/standin", standin),
    ]
    uvicorn.run(Starlette(routes=routes), uds=options.uds, log_level="error", lifespan="off")
