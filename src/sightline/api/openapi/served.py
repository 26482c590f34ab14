"""GET /openapi.json and GET /docs: what is served here, for programs and for people.

One fixed document, in the package as `openapi.json`. It is made from the code by `document.py` when the code
changes (`python docs/generate.py`), never by a server.
"""

from __future__ import annotations

import asyncio
import json
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.api.openapi.page import to_page

FILE = Path(__file__).with_name("openapi.json")
HEADERS = {
    # Of a page without scripts that loads nothing, from us or anybody else.
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}


@cache
def document() -> bytes:
    return FILE.read_bytes()


@cache
def page() -> str:
    return to_page(json.loads(document()))


async def _show_document(request: Request) -> Response:
    return Response(await asyncio.to_thread(document), media_type="application/json")


async def _show_page(request: Request) -> Response:
    return Response(await asyncio.to_thread(page), headers=HEADERS, media_type="text/html")


def routes() -> list[Route]:
    return [Route("/openapi.json", _show_document), Route("/docs", _show_page)]
