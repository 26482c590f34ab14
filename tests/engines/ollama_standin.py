"""Speaks Ollama's API, without a model: as far as our engine uses it, and /api/generate.

    python -m tests.engines.ollama_standin [--placing inline|after] [--version 0.17.0] [--num-ctx 600]

Written from https://docs.ollama.com/api and ollama/ollama at fb307609 (api/types.go, server/routes.go,
server/prompt.go, llm/llama_server.go). Its model never ends by itself: it says what it sees, one token a word, and goes
on with words that follow from the prompt and the seed. What it does beside that is asked for by words of the prompt,
see `REFUSALS` and `on_purpose`. `/standin` tells what it was sent.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import re
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

TRAINED_CONTEXT = 2048
CELL = 28
STEP_S = 0.001
NAMES = {(255, 0, 0): "red", (0, 0, 255): "blue"}
WORDS = ("and", "then", "it", "goes", "on", "about", "shapes", "of", "many", "colours", "near", "the", "edge")
CONTROL = ("<|im_start|>", "<|im_end|>", "<|image_pad|>")
ON_DISK = {"seer:latest": ["completion", "vision", "tools", "thinking"], "reader:latest": ["completion"]}
ON_DISK["texts:latest"] = ["embedding"]
CLOUD = "seer-cloud:latest"
NOW = "2026-11-21T12:00:00.123456789Z"

arguments = argparse.ArgumentParser()
arguments.add_argument("--placing", choices=["inline", "after"], default="inline")
arguments.add_argument("--version", default="0.17.0")
arguments.add_argument("--num-ctx", type=int, default=600, help="of a model for which no request names one")


@dataclass
class State:
    placing: str
    version: str
    num_ctx: int
    on_disk: dict[str, list[str]] = field(default_factory=lambda: dict(ON_DISK))
    loaded: dict[str, int] = field(default_factory=dict)
    """Names to lengths of context."""
    sent: list[dict[str, Any]] = field(default_factory=list)


state: State


def full(name: str) -> str:
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def refuse(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status)


def missing(name: str) -> Response:
    return refuse(404, f"model '{name}' not found")


# --- the prompt ------------------------------------------------------------------------------------------------------


@dataclass
class Prompt:
    text: str
    """As rendered: pictures are `[img-0]`, `[img-1]` ..."""
    pictures: list[Image.Image]

    @property
    def words(self) -> list[str]:
        return re.sub(r"\[img-\d+\]", " ", self.text).split()

    @property
    def tokens(self) -> int:
        return len(self.words) + sum((p.width // CELL + 1) * (p.height // CELL + 1) for p in self.pictures)

    def seen(self) -> Iterator[str]:
        """In the order of the rendered prompt, with the word before each."""
        for match in re.finditer(r"\[img-(\d+)\]", self.text):
            before = re.split(r"[\s\]]", self.text[max(0, match.start() - 20) : match.start()].rstrip())[-1]
            picture = self.pictures[int(match[1])]
            colour = NAMES.get(picture.getpixel((picture.width // 2, picture.height // 2)), "grey")  # type: ignore[call-overload]
            yield f"{before}:{picture.width}x{picture.height} {colour}"


def render(messages: list[dict[str, Any]]) -> Prompt:
    """`imageTaggedMessages` of server/prompt.go, or llama.cpp's order: the text, then the pictures."""
    pictures: list[Image.Image] = []
    rendered = []
    for message in messages:
        text, prefix = message["content"], ""
        for data in message.get("images") or []:
            tag = f"[img-{len(pictures)}]"
            pictures.append(open_picture(data))
            if state.placing == "after":
                text += tag
            elif "[img]" in text:
                text = text.replace("[img]", tag, 1)
            else:
                prefix += tag
        rendered.append(f"{message['role']} {prefix}{text}")
    return Prompt("\n".join(rendered), pictures)


def open_picture(data: str) -> Image.Image:
    """Bare base64 of a PNG."""
    content = base64.b64decode(data, validate=True)
    assert content.startswith(b"\x89PNG"), "only what Ollama certainly reads"
    return Image.open(io.BytesIO(content)).convert("RGB")


# --- the answer ------------------------------------------------------------------------------------------------------


def words_of(prompt: Prompt, options: dict[str, Any]) -> Iterator[str]:
    """Without an end."""
    seen = "; ".join(prompt.seen())
    yield from f"I see {seen or 'nothing'} .".split()
    seed = options.get("seed", -1) if options.get("temperature", 0.8) > 0 else 0
    choice = random.Random(f"{zlib.crc32(prompt.text.encode())} {random.random() if seed == -1 else seed}")
    while True:
        yield choice.choice(WORDS)


def line(model: str, message: dict[str, Any], **fields: Any) -> dict[str, Any]:
    reply = {"role": "assistant", "content": "", **message}
    return {"model": model, "created_at": NOW, "message": reply, "done": False, **fields}


def logprobs_of(text: str, body: dict[str, Any]) -> dict[str, Any]:
    if not body.get("logprobs"):
        return {}
    chosen = {"token": text, "logprob": -0.25, "bytes": list(text.encode())}
    others = [{"token": f"other{i}", "logprob": -1.0 - i, "bytes": [111]} for i in range(20)]
    return {"logprobs": [{**chosen, "top_logprobs": [chosen, *others][: body.get("top_logprobs", 0)]}]}


async def answer(body: dict[str, Any], prompt: Prompt, num_ctx: int) -> AsyncIterator[dict[str, Any]]:
    model, options = body["model"], body.get("options") or {}
    room = num_ctx - prompt.tokens
    wanted = options.get("num_predict", -1)
    most = room if wanted < 0 else min(wanted, room)
    made, reason = 0, "length"
    forged = any(special in prompt.text for special in CONTROL)
    for word in words_of(prompt, options) if not forged else ():
        if made == most:
            break
        if word in options.get("stop", ()):
            reason = "stop"
            break
        await asyncio.sleep(STEP_S)
        text = word if made == 0 else f" {word}"
        made += 1
        yield line(model, {"content": text}, **logprobs_of(text, body))
    yield last(model, {}, "stop" if forged else reason, prompt.tokens, made)


def last(model: str, message: dict[str, Any], reason: str, prompt_tokens: int, made: int) -> dict[str, Any]:
    durations = {"total_duration": 5, "load_duration": 1, "prompt_eval_duration": 2, "eval_duration": 2}
    counts = {"prompt_eval_count": prompt_tokens, "eval_count": made}
    return line(model, message, done=True, done_reason=reason, **durations, **counts)


def on_purpose(word: str, model: str) -> list[dict[str, Any] | bytes] | None:
    """Lines that a prompt asks for by a word."""
    call = {"function": {"index": 0, "name": "look", "arguments": {"where": "left é"}}}
    begun = line(model, {"content": "It"})
    return {
        "break-off": [begun, line(model, {"content": " is"})],
        "late-error": [begun, {"error": "llama-server chat error: secret /opt/path"}],
        "garbage": [begun, b"<html>secret</html>\n"],
        "half-a-line": [begun, b'{"model":"seer","done":true'],
        "no-reason": [begun, line(model, {}, done=True)],
        "unload": [line(model, {}, done=True, done_reason="unload")],
        "think": [line(model, {"thinking": "Hm."}), begun, last(model, {}, "stop", 7, 2)],
        "call": [
            begun,
            line(model, {"tool_calls": [{"id": "call_a", **call}]}),
            last(model, {"tool_calls": [call]}, "stop", 7, 9),
        ],
    }.get(word)  # type: ignore[return-value]


REFUSALS = {"busy": 503, "refuse": 400, "broken": 500, "who": 401, "gone": 404, "big": 413}


async def chat(request: Request) -> Response:
    body = await request.json()
    state.sent.append({"path": "/api/chat", **body})
    name = full(body["model"])
    if name not in state.on_disk and name != CLOUD:
        return missing(body["model"])
    if not body.get("messages"):
        return load_or_unload(body, name)
    capabilities = state.on_disk.get(name, ["completion"])
    for wanted, capability in (("tools", "tools"), ("think", "thinking")):
        if body.get(wanted) and capability not in capabilities:
            return refuse(400, f'"{body["model"]}" does not support {capability}')
    num_ctx = context_of(body, name)
    prompt = render(body["messages"])
    if body.get("_debug_render_only") and state.version >= "0.11":
        return JSONResponse({"model": name, "created_at": NOW, "_debug_info": {"rendered_template": prompt.text}})
    for word in prompt.words:
        if word in REFUSALS:
            return refuse(REFUSALS[word], "secret text of /opt/path")
        if (lines := on_purpose(word, body["model"])) is not None:
            return StreamingResponse(map(to_line, lines), media_type="application/x-ndjson")
    if prompt.tokens >= num_ctx:
        return refuse(400, "the prompt is longer than the context length currently available to the model")
    lines_said = answer(body, prompt, num_ctx)
    if body.get("stream") is False:
        return JSONResponse(whole([said async for said in lines_said]))
    return StreamingResponse((to_line(said) async for said in lines_said), media_type="application/x-ndjson")


def whole(lines: list[dict[str, Any]]) -> dict[str, Any]:
    text = "".join(said["message"]["content"] for said in lines)
    return {**lines[-1], "message": {"role": "assistant", "content": text}}


def to_line(said: dict[str, Any] | bytes) -> bytes:
    return said if isinstance(said, bytes) else json.dumps(said, ensure_ascii=False).encode() + b"\n"


def context_of(body: dict[str, Any], name: str) -> int:
    num_ctx = (body.get("options") or {}).get("num_ctx") or state.num_ctx
    state.loaded[name] = min(num_ctx, TRAINED_CONTEXT)
    return state.loaded[name]


def load_or_unload(body: dict[str, Any], name: str) -> Response:
    if body.get("keep_alive") == 0:
        state.loaded.pop(name, None)
        reason = "unload"
    else:
        context_of(body, name)
        reason = "load"
    return JSONResponse(line(body["model"], {}, done=True, done_reason=reason))


async def generate(request: Request) -> Response:
    """The same, with a prompt in place of messages."""
    body = await request.json()
    name = full(body["model"])
    if name not in state.on_disk:
        return missing(body["model"])
    prompt = render([{"role": "user", "content": body.get("prompt", ""), "images": body.get("images")}])
    if body.get("raw"):
        prompt = Prompt(body["prompt"], [])
        if prompt.tokens >= context_of(body, name):
            return refuse(400, "the input length exceeds the context length")

    async def stream() -> AsyncIterator[bytes]:
        async for said in answer(body, prompt, context_of(body, name)):
            yield to_line({**said, "response": said.pop("message")["content"]})

    return StreamingResponse(stream(), media_type="application/x-ndjson")


# --- models ----------------------------------------------------------------------------------------------------------


def row(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "model": name,
        "size": 1,
        "digest": "sha256:0",
        "details": {"format": "gguf", "family": "seer"},
    }


async def tags(request: Request) -> Response:
    return JSONResponse({"models": [{**row(name), "modified_at": NOW} for name in state.on_disk]})


async def ps(request: Request) -> Response:
    rows = [{**row(n), "expires_at": NOW, "size_vram": 0, "context_length": c} for n, c in state.loaded.items()]
    return JSONResponse({"models": rows})


async def show(request: Request) -> Response:
    body = await request.json()
    name = full(body["model"])
    if name == CLOUD:
        return JSONResponse({"remote_host": "https://ollama.com", "capabilities": ["completion"], "model_info": None})
    if name not in state.on_disk:
        return missing(body["model"])
    vocabulary = [*WORDS, *CONTROL, "<b>"]
    kinds = [1] * len(WORDS) + [3] * len(CONTROL) + [4]
    info: dict[str, Any] = {"general.architecture": "seer", "seer.context_length": TRAINED_CONTEXT}
    verbose = body.get("verbose", False)
    info |= {
        "tokenizer.ggml.tokens": vocabulary if verbose else [],
        "tokenizer.ggml.token_type": kinds if verbose else [],
    }
    return JSONResponse({"details": {}, "model_info": info, "capabilities": state.on_disk[name], "modified_at": NOW})


async def pull(request: Request) -> Response:
    body = await request.json()
    name = full(body["model"])

    async def stream() -> AsyncIterator[bytes]:
        yield to_line({"status": "pulling manifest"})
        if name.startswith("unknown"):
            yield to_line({"error": "pull model manifest: file does not exist\x1b[31m"})
            return
        for digest, total in (("sha256:aaa", 3_000_000_000), ("sha256:bbb", 1_000_000_000)):
            for part in range(0, 101, 2):
                told = {"digest": digest, "total": total, "completed": total * part // 100}
                yield to_line({"status": f"pulling {digest[7:]}", **{k: v for k, v in told.items() if v}})
                await asyncio.sleep(STEP_S)
            if name.startswith("lost"):
                return
        yield to_line({"status": "verifying sha256 digest"})
        state.on_disk[name] = ["completion", "vision"]
        yield to_line({"status": "success"})

    return StreamingResponse(stream(), media_type="application/x-ndjson")


async def embed(request: Request) -> Response:
    """A vector for each text: how many of its characters are `a`, and how many are not."""
    body = await request.json()
    name = full(body["model"])
    if name not in state.on_disk:
        return missing(name)
    if "embedding" not in state.on_disk[name]:
        return refuse(400, "this model does not support embeddings")
    assert body["truncate"] is False
    texts = body["input"]
    if any(len(text) > 1000 for text in texts):
        return refuse(400, "the input length exceeds the context length")
    vectors = [[text.count("a"), len(text) - text.count("a")][: body.get("dimensions")] for text in texts]
    return JSONResponse({"model": name, "embeddings": vectors, "prompt_eval_count": sum(map(len, texts))})


async def version(request: Request) -> Response:
    return JSONResponse({"version": state.version})


async def standin(request: Request) -> Response:
    return JSONResponse({"sent": state.sent, "loaded": state.loaded})


if __name__ == "__main__":
    options = arguments.parse_args()
    state = State(options.placing, options.version, options.num_ctx)
    routes = [
        Route("/api/chat", chat, methods=["POST"]),
        Route("/api/generate", generate, methods=["POST"]),
        Route("/api/show", show, methods=["POST"]),
        Route("/api/pull", pull, methods=["POST"]),
        Route("/api/embed", embed, methods=["POST"]),
        Route("/api/tags", tags),
        Route("/api/ps", ps),
        Route("/api/version", version),
        Route("/standin", standin),
    ]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=0, log_level="error", lifespan="off"))
    listening = server.config.bind_socket()
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    asyncio.run(server.serve([listening]))
