# mypy: disable-error-code="import-not-found, misc, no-untyped-call, untyped-decorator, unused-ignore"
"""LiteLLM without its proxy, which cannot be installed today: its SDK behind FastAPI, with nothing else around it.

Run by a Python that has litellm, fastapi and uvicorn[standard]; it imports nothing of Sightline. The proxy does more
than this (keys, logs, routing), so it costs more.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from typing import Any

import litellm
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--upstream", required=True, help="base URL of the model's server")
args = parser.parse_args()

litellm.telemetry = False
litellm.suppress_debug_info = True
app = FastAPI()


@app.post("/v1/chat/completions")
async def chat(request: Request) -> Response:
    body = await request.json()
    model = f"openai/{body.pop('model')}"
    reply: Any = await litellm.acompletion(model=model, api_base=args.upstream, api_key="none", **body)
    if not body.get("stream"):
        return Response(reply.model_dump_json(), media_type="application/json")

    async def events() -> AsyncIterator[str]:
        async for chunk in reply:
            yield f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


uvicorn.run(app, host="127.0.0.1", port=args.port, access_log=False, log_level="warning")
