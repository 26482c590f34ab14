"""Keys as other people's SDKs, our client and our commands send them, over a socket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import anthropic
import ollama
import openai
import pytest

from sightline.cli import main
from sightline.client import ApiError, Client
from sightline.config import ModelConfig
from tests.access.keyed import Keyed
from tests.api.serving import serving

MODELS = (ModelConfig(name="own", engine="fake"), ModelConfig(name="foreign", engine="fake"))
HELLO = [{"role": "user", "content": "hi"}]


@dataclass(frozen=True)
class Server:
    url: str
    right: str
    """For one model."""
    slow: str
    """A request a minute."""
    poor: str
    """A token a day."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keyed = Keyed(tmp_path_factory.mktemp("keys"), models=MODELS)
    right, slow = keyed.key("right", models=("own",)), keyed.key("slow", requests_per_minute=1)
    poor = keyed.key("poor", tokens_per_day=1)
    _, app = keyed.make()
    with serving(app) as port:
        yield Server(f"http://127.0.0.1:{port}", right, slow, poor)


def of_openai(server: Server, key: str, **options: int) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, **{"max_retries": 0, **options})


def test_openai(server: Server) -> None:
    with of_openai(server, server.right) as client:
        raw = client.chat.completions.with_raw_response.create(model="own", messages=HELLO, max_tokens=5)  # type: ignore[call-overload]
        assert raw.parse().choices[0].message.content
        assert [model.id for model in client.models.list()] == ["own"]
        with pytest.raises(openai.PermissionDeniedError) as denied:
            client.chat.completions.create(model="foreign", messages=HELLO)  # type: ignore[call-overload]
        assert denied.value.param == "model"
    with of_openai(server, "sl-wrong") as client, pytest.raises(openai.AuthenticationError) as wrong:
        client.models.list()
    assert (wrong.value.status_code, wrong.value.code) == (401, "invalid_api_key")


def test_openais_limits(server: Server) -> None:
    with of_openai(server, server.slow) as client:
        raw = client.chat.completions.with_raw_response.create(model="own", messages=HELLO, max_tokens=5)  # type: ignore[call-overload]
        assert raw.headers["x-ratelimit-limit-requests"] == "1"
        assert raw.headers["x-ratelimit-reset-requests"] == "1m0s"
        with pytest.raises(openai.RateLimitError) as limited:
            client.chat.completions.create(model="own", messages=HELLO)  # type: ignore[call-overload]
    assert (limited.value.code, limited.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    assert 1 <= int(limited.value.response.headers["retry-after"]) <= 60
    with of_openai(server, server.poor, max_retries=5) as client, pytest.raises(openai.RateLimitError) as over:
        client.chat.completions.create(model="own", messages=HELLO)  # type: ignore[call-overload]
    assert over.value.code == "insufficient_quota"
    assert "x-stainless-retry-count" not in over.value.request.headers or (
        over.value.request.headers["x-stainless-retry-count"] == "0"
    ), "it was told not to ask again, and did not"


def test_anthropic(server: Server) -> None:
    def client(key: str) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0)

    with client(server.right) as right:
        assert right.messages.create(model="own", max_tokens=5, messages=HELLO).content  # type: ignore[arg-type]
        assert [model.id for model in right.models.list()] == ["own"]
        with pytest.raises(anthropic.PermissionDeniedError):
            right.messages.create(model="foreign", max_tokens=5, messages=HELLO)  # type: ignore[arg-type]
    with client("sl-wrong") as wrong, pytest.raises(anthropic.AuthenticationError) as refused:
        wrong.messages.create(model="own", max_tokens=5, messages=HELLO)  # type: ignore[arg-type]
    assert refused.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
    with anthropic.Anthropic(base_url=server.url, auth_token=server.right, max_retries=0) as bearer:
        assert bearer.messages.create(model="own", max_tokens=5, messages=HELLO).content  # type: ignore[arg-type]


def test_ollama_whose_client_takes_headers(server: Server) -> None:
    client = ollama.Client(host=server.url, headers={"Authorization": f"Bearer {server.right}"})
    assert client.chat(model="own", messages=HELLO).message.content
    assert [model.model for model in client.list().models] == ["own:latest"]
    with pytest.raises(ollama.ResponseError) as refused:
        ollama.Client(host=server.url).list()
    assert refused.value.status_code == 401
    assert "API key" in refused.value.error


def test_ours(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("SIGHTLINE_API_KEY", raising=False)
    with Client(server.url, api_key=server.right) as client:
        assert client.ask("hi", model="own").text
    with Client(server.url) as client, pytest.raises(ApiError, match="API key"):
        client.ask("hi", model="own")
    monkeypatch.setenv("SIGHTLINE_API_KEY", server.right)
    with Client(server.url) as client:
        assert client.ask("hi", model="own").text
    assert main(["batch", "status", "batch_none", "--url", f"{server.url}/v1"]) == 1
    assert "There is no batch" in capsys.readouterr().err, "the key was sent and taken"
    monkeypatch.setenv("SIGHTLINE_API_KEY", "sl-wrong")
    assert main(["batch", "status", "batch_none", "--url", f"{server.url}/v1"]) == 1
    assert "The API key is not known here" in capsys.readouterr().err
