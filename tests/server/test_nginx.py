"""The reverse proxy of docs/security.md, as it stands there, in front of a server. Where nginx is installed."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from sightline.items import ChoiceEvent, Item
from sightline.types import ChatRequest, TextDelta
from tests.api.serving import serving
from tests.api.standin import FINISH, PREPARED, ScriptedService, app_of, chat
from tests.server.certificates import issued, trusting

PAGE = Path(__file__).parent.parent.parent / "docs" / "security.md"
NGINX = shutil.which("nginx")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

AROUND = """
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
    uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
    {block}
}}
"""


@contextmanager
def proxied(port: int, folder: Path) -> Iterator[int]:
    """nginx with the page's configuration, its files and ports exchanged. Gives its port."""
    found = re.search(r"^```nginx\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert found is not None
    files = issued(folder)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        own: int = probe.getsockname()[1]
    block = found[1].replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace("listen 443", f"listen 127.0.0.1:{own}")
    block = re.sub(r"/etc/letsencrypt\S+fullchain\.pem", files.certificate, block)
    block = re.sub(r"/etc/letsencrypt\S+privkey\.pem", files.key, block)
    block = block.replace("server_name vision.example.com", "server_name localhost")
    config = folder / "nginx.conf"
    config.write_text(AROUND.format(folder=folder, block=block))
    with subprocess.Popen([str(NGINX), "-p", str(folder), "-c", str(config)]) as process:
        try:
            for _ in range(500):
                assert process.poll() is None
                try:
                    socket.create_connection(("127.0.0.1", own)).close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.01)
            yield own
        finally:
            process.terminate()


def test_tokens_come_through_as_they_are_made(tmp_path: Path) -> None:
    seen = threading.Event()

    async def script(request: ChatRequest) -> AsyncIterator[Item]:
        yield PREPARED
        yield ChoiceEvent(0, TextDelta("first"))
        await asyncio.to_thread(seen.wait, 20)
        yield ChoiceEvent(0, FINISH)

    app = app_of(ScriptedService(script))
    with (
        serving(app, trusted_proxies=("127.0.0.1/32",)) as port,
        proxied(port, tmp_path) as own,
        httpx.Client(verify=trusting(), base_url=f"https://localhost:{own}", timeout=20) as client,
    ):
        with client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as reply:
            assert reply.status_code == 200
            lines = []
            for line in reply.iter_lines():
                lines.append(line)
                if "first" in line:
                    seen.set()  # what the server waits for
            assert "data: [DONE]" in lines
        assert client.post("/nowhere", json=chat()).status_code == 404


def test_the_client_is_who_came_to_the_proxy(tmp_path: Path) -> None:
    async def tell(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for answer in ("lifespan.startup.complete", "lifespan.shutdown.complete"):
                await receive()
                await send({"type": answer})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": f"{scope['client'][0]} {scope['scheme']}".encode()})

    with serving(tell, trusted_proxies=("127.0.0.1/32",)) as port, proxied(port, tmp_path) as own:
        transport = httpx.HTTPTransport(verify=trusting(), local_address="127.0.0.2")
        with httpx.Client(transport=transport) as client:
            lie = {"x-forwarded-for": "6.6.6.6", "x-forwarded-proto": "gopher"}
            assert client.get(f"https://localhost:{own}/", headers=lie).text == "127.0.0.2 https"
