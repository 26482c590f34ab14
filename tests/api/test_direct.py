"""A path is answered by the route that Starlette's router would take, whichever of the two finds it."""

from __future__ import annotations

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from sightline.api.direct import Direct


def says(text: str) -> object:
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(f"{text} {request.path_params} {request.scope['route'].path}")

    return endpoint


def synchronous(request: Request) -> Response:
    return PlainTextResponse("from a thread")


class Application:
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("an application")(scope, receive, send)


ROUTES = [
    Route("/files", says("list")),
    Route("/files", says("create"), methods=["POST"]),
    Route("/files", says("shadowed"), methods=["POST"]),
    Route("/models/{id:path}", says("one")),
    Route("/models/all", says("hidden by the one before")),
    Route("/thread", synchronous),
    Route("/application", Application()),
]


@pytest.mark.parametrize("root_path", ["", "/files"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
@pytest.mark.parametrize(
    "path", ["/files", "/files/", "/files/files", "/models/all", "/models/", "/thread", "/application", "/nowhere", "/"]
)
def test_it_answers_as_the_router_does(method: str, path: str, root_path: str) -> None:
    router = Router(ROUTES, redirect_slashes=False)
    ours, theirs = (TestClient(app, root_path=root_path).request(method, path) for app in (Direct(router), router))
    assert (ours.status_code, ours.text) == (theirs.status_code, theirs.text)


def test_what_is_asked_for_most_is_found_at_once() -> None:
    async def everything(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("the router was asked")

    router = Router([Route("/chat", says("chat"), methods=["POST"])])
    direct = Direct(router)
    router.middleware_stack = everything
    assert TestClient(direct).post("/chat").text == "chat {} /chat"
