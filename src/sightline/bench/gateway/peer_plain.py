# mypy: disable-error-code="import-not-found, misc, no-untyped-call, untyped-decorator, unused-ignore"
"""The proxy that people write first: FastAPI takes the body apart, httpx sends it on, the answer goes back.

Run by a Python that has fastapi, httpx and uvicorn[standard]; it imports nothing of Sightline.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--upstream", required=True, help="base URL of the model's server")
args = parser.parse_args()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    limits = httpx.Limits(max_connections=2000, max_keepalive_connections=2000)
    async with httpx.AsyncClient(base_url=args.upstream, limits=limits, timeout=600) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/v1/chat/completions")
async def chat(request: Request) -> Response:
    body = await request.json()
    client: httpx.AsyncClient = app.state.client
    if not body.get("stream"):
        reply = await client.post("/chat/completions", json=body)
        return JSONResponse(reply.json(), reply.status_code)

    async def pieces() -> AsyncIterator[bytes]:
        async with client.stream("POST", "/chat/completions", json=body) as reply:
            async for piece in reply.aiter_bytes():
                yield piece

    return StreamingResponse(pieces(), media_type="text/event-stream")


uvicorn.run(app, host="127.0.0.1", port=args.port, access_log=False, log_level="warning")
