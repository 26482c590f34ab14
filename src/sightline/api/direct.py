"""Routes whose path has no parameters are found by it, in one step, and answered without what stands around a route in
Starlette (a match by each expression before it, and five calls that every step of an answer goes through). All else,
also what is not found or asked for by a wrong method, is the router's."""

from __future__ import annotations

import inspect

from starlette.requests import Request
from starlette.routing import Match, Route, Router
from starlette.types import Receive, Scope, Send


class Direct:
    """In front of a router, whose routes change no more. What answers is the route that the router would take."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self._routes: dict[tuple[str, str], Route] = {}
        for route in router.routes:
            if isinstance(route, Route) and not route.param_convertors and _is_direct(route):
                for method in route.methods or ():
                    if _first(router, method, route.path) is route:
                        self._routes[method, route.path] = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None or scope.get("root_path"):
            await self.router(scope, receive, send)
            return
        scope.update(route=route, endpoint=route.endpoint, path_params={})
        response = await route.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


def _is_direct(route: Route) -> bool:
    """Whether it is nothing but a function from a request to a response."""
    endpoint = route.endpoint
    return (inspect.isfunction(endpoint) or inspect.ismethod(endpoint)) and inspect.iscoroutinefunction(endpoint)


def _first(router: Router, method: str, path: str) -> object:
    scope = {"type": "http", "method": method, "path": path, "headers": []}
    return next((route for route in router.routes if route.matches(scope)[0] is Match.FULL), None)
