"""`sightline pull`: from a stand-in of Hugging Face's hub, by Ollama's stand-in, and what cannot be downloaded."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sightline.cli import main
from sightline.config import ModelConfig
from sightline.engines.hub import download, local_copy
from sightline.engines.sources import model_directory
from sightline.errors import EngineUnavailable
from tests.engines.test_ollama import ollama

MODEL = "org/tiny-vlm"
COMMIT = "a" * 40
FILES = {
    "config.json": b'{"model_type": "qwen2_vl"}',
    "model.safetensors": bytes(range(256)) * 4096,
    "evil.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as `snapshot_download` asks for."""

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{MODEL}/tree/"):
            rows = [{"type": "file", "path": n, "size": len(d), "oid": digest(d)} for n, d in FILES.items()]
            self.say(json.dumps(rows).encode(), body=body)
        elif path.startswith(f"/api/models/{MODEL}"):
            names = [{"rfilename": name, "size": len(data)} for name, data in FILES.items()]
            told = {"id": MODEL, "modelId": MODEL, "sha": COMMIT, "siblings": names, "private": False}
            self.say(json.dumps(told).encode(), body=body)
        elif path.startswith(f"/{MODEL}/resolve/{COMMIT}/"):
            data = FILES[path.rpartition("/")[2]]
            self.say(data, body=body, ETag=f'"{digest(data)}"', X_Repo_Commit=COMMIT)
        else:
            gated = "gated" in path
            self.send_response(403 if gated else 404)
            self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def say(self, data: bytes, *, body: bool, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its address; the copies are made below `tmp_path`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    # As HF_ENDPOINT sets them.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield address
    server.shutdown()
    server.server_close()


def test_a_hubs_model_is_downloaded_and_then_found(hub: str) -> None:
    told: list[float] = []
    assert local_copy(MODEL) is None
    made = download(MODEL, told.append)
    assert {path.name: path.read_bytes() for path in made.iterdir()} == {
        name: FILES[name] for name in ("config.json", "model.safetensors")
    }, "neither code nor pickles"
    assert told
    assert told[-1] == 1.0
    assert model_directory(ModelConfig(name="m", engine="transformers", source=MODEL)) == made


def test_code_comes_only_where_the_operator_trusts_it(hub: str) -> None:
    made = download(MODEL, lambda progress: None, with_code=True)
    assert (made / "evil.py").exists()
    assert not (made / "pytorch_model.bin").exists()


@pytest.mark.parametrize(
    ("model", "told"), [("org/nobody", "has no such model"), ("org/gated", "has not let you have it")]
)
def test_what_the_hub_refuses_is_told(hub: str, model: str, told: str) -> None:
    with pytest.raises(EngineUnavailable, match=told):
        download(model, lambda progress: None)


def test_a_hub_that_cannot_be_reached(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(EngineUnavailable, match="could not be downloaded"):
        download(MODEL, lambda progress: None)


def test_the_command_shows_how_far_it_is(hub: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", MODEL]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{MODEL} is here: sightline serve --engine transformers --model {MODEL}\n"
    assert shown.err.splitlines()[-1] == f"{MODEL}: 100 %"


def test_ollama_pulls_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with ollama() as address:
        assert main(["pull", "new", "--option", f"base_url={address}"]) == 0
        shown = capsys.readouterr()
        assert "new is here: sightline serve --engine ollama --model new" in shown.out
        assert len(shown.err.splitlines()) >= 11, "one for each tenth, and again where more bytes are known of"
        assert shown.err.splitlines()[-1] == "new: 100 %"
        assert main(["pull", "unknown", "--option", f"base_url={address}"]) == 1
        assert "could not pull the model 'unknown'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["peek", "--engine", "openvino"], "is on this machine already"),
        (["gpt-4.1", "--engine", "remote", "--option", "base_url=http://h/v1"], "The engine remote downloads nothing"),
        (["org/model", "--engine", "openvino"], "takes a directory"),
        (["model", "--engine", "nobody"], "no engine 'nobody'"),
    ],
)
def test_what_cannot_be_downloaded_is_told(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", *arguments]) == 1
    assert told in capsys.readouterr().err
