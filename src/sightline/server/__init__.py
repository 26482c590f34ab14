"""The HTTP server around the application: sockets, and what happens on them before there is a request."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import uvicorn
from starlette.types import ASGIApp


def serve(app: ASGIApp, listeners: Sequence[socket.socket]) -> None:
    """Answers on sockets that are bound already. Returns when a signal has ended it."""
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=True,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=30,
    )
    uvicorn.Server(config).run(sockets=list(listeners))
