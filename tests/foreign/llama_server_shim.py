"""Our server in the place of `llama-server`, for llama.cpp's tests: takes its flags, and its clients' ways.

What is translated, and nothing else: paths without `/v1`; the model, which llama.cpp does not look at; the two pictures
that its tests fetch from a model hub, which `llama_cpp.py` serves on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import MutableMapping
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sightline.api.app import create_app
from sightline.config import FetchPolicy, ModelConfig, Settings
from sightline.engines.fake import FakeEngine
from sightline.service import Service

PATHS = {
    "/chat/completions": "/v1/chat/completions",
    "/chat/completions/input_tokens": "/v1/chat/completions/input_tokens",
    "/responses": "/v1/responses",
    "/models": "/v1/models",
}
REMOTE = "https://huggingface.co/ggml-org/tinygemma3-GGUF/resolve/main/test"
"""Where the suite's pictures are."""


class Adapter:
    def __init__(self, app: ASGIApp, model: str, pictures: str) -> None:
        self._app = app
        self._model = model
        self._pictures = pictures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["path"] = PATHS.get(scope["path"], scope["path"])
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        body = self._translate(await _read(receive))
        scope["headers"] = [(n, v) for n, v in scope["headers"] if n not in (b"content-length", b"transfer-encoding")]
        scope["headers"].append((b"content-length", str(len(body)).encode()))
        sent = False

        async def receive_body() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_body, send)

    def _translate(self, body: bytes) -> bytes:
        try:
            value: Any = json.loads(body)
        except ValueError:
            return body
        if isinstance(value, MutableMapping):
            value["model"] = self._model
        return json.dumps(value).replace(REMOTE, self._pictures).encode()


async def _read(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--alias", default="model")
    parser.add_argument("--hf-repo", default="")
    parser.add_argument("--ctx-size", type=int, default=8192)
    parser.add_argument("--cors-origins", default="")
    args, _ = parser.parse_known_args()
    pictures = os.environ["FOREIGN_PICTURES"]
    if "gemma" in args.hf_repo:
        model = ModelConfig(name=args.alias)
        engines = {}
    else:
        model = ModelConfig(name=args.alias, engine="fake", options={"context_length": args.ctx_size})
        engines = {args.alias: FakeEngine(model)}
    settings = Settings(
        models=(model,),
        fetch=FetchPolicy(allow_hosts=(pictures.partition("//")[2],), allow_networks=("127.0.0.0/8",)),
    )
    app = Adapter(create_app(Service(settings, engines), settings, wait=True), args.alias, pictures)
    uvicorn.run(app, host=args.host, port=args.port, http="httptools", ws="none", lifespan="on", log_level="error")


if __name__ == "__main__":
    sys.exit(main())
