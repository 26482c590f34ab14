"""GET /: for Ollama's clients the text by which they know that a server is there; for a browser, where to go from here.

A browser is told by its `Accept`, which names `text/html`; programs accept anything, or JSON.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from sightline.api.openapi.served import HEADERS

_VARY = {"vary": "Accept"}
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.6 system-ui, sans-serif; margin: 3rem auto; max-width: 40rem; padding: 0 1.5rem; }
"""
_LINKS = (
    ("docs", "The API", "every route, with its fields"),
    ("openapi.json", "openapi.json", "the same for programs"),
    ("v1/models", "Models", "what is served, and whether it is ready"),
    ("ready", "Ready", "whether every model can take a request"),
)
_PAGE = ("ui", "Chat", "ask about pictures, here in the browser")


def routes(*, has_page: bool) -> list[Route]:
    """`has_page`: whether there is a page to chat at `/ui`."""
    shown = _to_html((_PAGE, *_LINKS) if has_page else _LINKS)

    async def home(request: Request) -> Response:
        if "text/html" in request.headers.get("accept", "").lower():
            return HTMLResponse(shown, headers={**HEADERS, **_VARY})
        return PlainTextResponse("Ollama is running", headers=_VARY)

    return [Route("/", home)]


def _to_html(links: tuple[tuple[str, str, str], ...]) -> str:
    items = "".join(f'<li><a href="{path}">{name}</a>: {what}</li>' for path, name, what in links)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Sightline</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n<h1>Sightline is running</h1>\n"
        "<p>Programs ask it at <code>/v1</code>, as they ask OpenAI's API.</p>\n"
        f"<ul>{items}</ul>\n</body></html>\n"
    )
