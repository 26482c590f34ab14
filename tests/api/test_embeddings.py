"""POST /v1/embeddings: OpenAI's own SDK over a socket, and every way to ask wrongly."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

from sightline.config import ModelConfig, Settings
from tests.api.serving import sdk, server_of

PAGE = Path(__file__).parent.parent.parent / "docs" / "embeddings.md"
SETTINGS = Settings(
    models=(
        ModelConfig(name="texts", engine="fake", options={"context_length": 100}),
        ModelConfig(name="peek", load="demand"),
    )
)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with server_of(SETTINGS) as port:
        yield port


@pytest.fixture
def client(port: int) -> openai.OpenAI:
    return sdk(port)


def post(port: int, **body: Any) -> httpx2.Response:
    return httpx2.post(f"http://127.0.0.1:{port}/v1/embeddings", json={"model": "texts", "input": "a", **body})


def test_the_sdk_reads_vectors_in_the_order_of_the_texts(client: openai.OpenAI) -> None:
    made = client.embeddings.create(model="texts", input=["a red circle", "the tax return", "two red circles"])
    assert [item.index for item in made.data] == [0, 1, 2]
    red, tax, reds = (np.array(item.embedding) for item in made.data)
    assert red @ reds > 0.4 > red @ tax
    assert np.linalg.norm(red) == pytest.approx(1.0, abs=1e-6)
    assert (made.model, made.object, made.usage.prompt_tokens, made.usage.total_tokens) == ("texts", "list", 9, 9)


def test_base64_is_the_same_vector_as_little_endian_float32(port: int) -> None:
    told = post(port, encoding_format="base64").json()["data"][0]["embedding"]
    numbers = post(port, encoding_format="float").json()["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(told, validate=True), "<f4").tolist() == numbers
    assert post(port).json()["data"][0]["embedding"] == numbers


def test_token_ids_are_texts_too(port: int) -> None:
    text, tokens, lists = (post(port, input=i).json()["data"] for i in ("hi", [104, 105], [[104, 105], [97]]))
    assert text == tokens == lists[:1]
    assert len(lists) == 2


def test_dimensions(client: openai.OpenAI) -> None:
    made = client.embeddings.create(model="texts", input="a", dimensions=8)
    assert len(made.data[0].embedding) == 8


def test_as_many_as_there_may_be(port: int) -> None:
    reply = post(port, input=[f"text {i}" for i in range(2048)], encoding_format="base64")
    assert [item["index"] for item in reply.json()["data"]] == list(range(2048))


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": ""}, "input", None),
        ({"input": []}, "input", None),
        ({"input": ["a", ""]}, "input[1]", None),
        ({"input": ["a", 1]}, "input[1]", "invalid_type"),
        ({"input": [1, "a"]}, "input[1]", "invalid_type"),
        ({"input": [True]}, "input[0]", "invalid_type"),
        ({"input": [-1]}, "input[0]", None),
        ({"input": [[1], []]}, "input[1]", None),
        ({"input": [[1], "a"]}, "input[1]", "invalid_type"),
        ({"input": {"a": 1}}, "input", "invalid_type"),
        ({"input": [1.5]}, "input", "invalid_type"),
        ({"input": None}, "input", "invalid_type"),
        ({"input": ["a"] * 2049}, "input", None),
        ({"input": [1] * 2049}, "input", None),
        ({"input": [55296]}, "input", None),
        ({"input": "word " * 101}, "input", "context_length_exceeded"),
        ({"encoding_format": "int8"}, "encoding_format", None),
        ({"dimensions": 0}, "dimensions", None),
        ({"dimensions": 65}, "dimensions", None),
        ({"dimensions": "8"}, "dimensions", "invalid_type"),
        ({"model": "peek"}, "model", "unsupported_parameter"),
        ({"model": ""}, "model", None),
    ],
)
def test_what_is_wrong_is_told(port: int, fields: dict[str, Any], param: str, code: str | None) -> None:
    reply = post(port, **fields)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert error["message"]


def test_a_model_that_is_not_there(port: int) -> None:
    reply = post(port, model="nobody")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")


def test_who_answered_stands_in_the_headers(port: int) -> None:
    assert post(port).headers["x-sightline-engine"] == "fake"


def test_ovms_has_the_route_too(port: int) -> None:
    reply = httpx2.post(f"http://127.0.0.1:{port}/v3/embeddings", json={"model": "texts", "input": "a"})
    assert reply.json() == post(port).json()


def test_the_page_is_right(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    exec(compile(code.replace("8000", str(port)), "docs/embeddings.md", "exec"), {})
    assert capsys.readouterr().out == "True\n"
