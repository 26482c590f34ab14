"""Speaks the wire of llama.cpp's server, without a model, as far as our engine uses it.

    PROGRAM --host SOCKET ...

It answers with its own arguments and what it was sent, so that a test sees both; and like the real one it closes the
connection after a stream without saying so.
"""

from __future__ import annotations

import json
import os
import socketserver
import sys
from http.server import BaseHTTPRequestHandler
from typing import Any

CONTEXT = 512
SOCKET = sys.argv[sys.argv.index("--host") + 1]
TOOLS = "tools" in os.path.basename(sys.argv[sys.argv.index("--model") + 1])


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class Wire(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        settings = {"default_generation_settings": {"n_ctx": CONTEXT}, "chat_template_caps": {"supports_tools": TOOLS}}
        self.tell(settings)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/input_tokens"):
            self.tell({"input_tokens": 30 + 20 * json.dumps(body).count("image_url")})
            return
        said = json.dumps({"argv": sys.argv[1:], "body": body, "connection": self.headers["Connection"]})
        choices = [({"content": said}, None), ({}, "stop")]
        self.stream([*({"choices": [choice(*told)]} for told in choices), {"choices": [], "usage": USAGE}])

    def tell(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, chunks: list[Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        self.wfile.write(f"{len(text.encode()):x}\r\n{text}\r\n0\r\n\r\n".encode())
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass

    def address_string(self) -> str:
        return "socket"


def choice(delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


USAGE = {"prompt_tokens": 30, "completion_tokens": 1, "total_tokens": 31}

if __name__ == "__main__":
    Server(SOCKET, Wire).serve_forever()
