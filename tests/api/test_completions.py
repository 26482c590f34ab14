"""POST /v1/completions: OpenAI's own SDK over a socket, streamed and not, and every way to ask wrongly."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from tokenizers import Tokenizer

from sightline.api.app import create_app
from sightline.config import PEEK, ModelConfig, Settings
from sightline.engines.fake import tokenise
from sightline.service import Service
from tests.api.serving import sdk, server_of, serving

SETTINGS = Settings(
    models=(ModelConfig(name="plain", engine="fake", options={"context_length": 200}, max_concurrent=2),)
)
SAID = "I see no pictures. You said: "
"""What the engine goes on with, before the prompt that it was given."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with server_of(SETTINGS) as port:
        yield port


@pytest.fixture
def client(port: int) -> openai.OpenAI:
    return sdk(port)


def post(port: int, **body: Any) -> httpx2.Response:
    return httpx2.post(f"http://127.0.0.1:{port}/v1/completions", json={"model": "plain", "prompt": "a", **body})


def test_a_text_is_gone_on_with(client: openai.OpenAI) -> None:
    made = client.completions.create(model="plain", prompt="hello there", max_tokens=50)
    (choice,) = made.choices
    assert (choice.text, choice.index, choice.finish_reason, choice.logprobs) == (SAID + "hello there", 0, "stop", None)
    assert (made.object, made.model, made.id[:5]) == ("text_completion", "plain", "cmpl-")
    assert made.usage is not None
    # No chat template and no start of an answer: the prompt's own tokens.
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (2, len(tokenise(choice.text)))
    assert made.usage.total_tokens == 2 + made.usage.completion_tokens


def test_sixteen_tokens_unless_it_says_otherwise(client: openai.OpenAI) -> None:
    made = client.completions.create(model="plain", prompt="on and on and on and on and on and on and on and on")
    assert made.choices[0].finish_reason == "length"
    assert made.usage is not None
    assert made.usage.completion_tokens == 16


@pytest.mark.parametrize("stream", [False, True])
def test_choices_stand_prompt_by_prompt(port: int, stream: bool) -> None:
    body = {"prompt": ["red", "green", "blue"], "n": 2, "max_tokens": 50, "stream": stream}
    reply = post(port, **body, **({"stream_options": {"include_usage": True}} if stream else {}))
    chunks = events(reply) if stream else [reply.json()]
    texts: dict[int, str] = defaultdict(str)
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == {i: SAID + word for i, word in enumerate(["red", "red", "green", "green", "blue", "blue"])}
    usage = chunks[-1]["usage"]
    assert usage["prompt_tokens"] == 3, "each prompt once, not once for each choice"
    assert usage["completion_tokens"] == 6 * len(tokenise(SAID + "red"))
    assert chunks[-1]["sightline"]["engine"] == "fake"


def test_token_ids_are_a_text(port: int) -> None:
    ids = [list(map(ord, word)) for word in ("red", "blue")]
    assert [c["text"] for c in post(port, prompt=ids, max_tokens=50).json()["choices"]] == [SAID + "red", SAID + "blue"]
    one = post(port, prompt=ids[0], max_tokens=50).json()
    assert one["choices"][0]["text"] == SAID + "red"
    assert one["usage"]["prompt_tokens"] == 3


def events(reply: httpx2.Response) -> list[Any]:
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model="plain", prompt="hello", max_tokens=50, stream=True))
    assert "".join(c.text for chunk in chunks for c in chunk.choices) == SAID + "hello"
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["stop"]
    assert {(chunk.id, chunk.object, chunk.created) for chunk in chunks} == {
        (chunks[0].id, "text_completion", chunks[0].created)
    }
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_comes_last_in_a_stream_that_asks_for_it(port: int) -> None:
    *chunks, last = events(post(port, stream=True, stream_options={"include_usage": True}))
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == 1
    assert all(chunk["usage"] is None for chunk in chunks)
    assert all("usage" not in chunk for chunk in events(post(port, stream=True)))


@pytest.mark.parametrize("stream", [False, True])
def test_echo_begins_with_the_prompt(port: int, stream: bool) -> None:
    reply = post(port, prompt=["a", "b"], echo=True, max_tokens=50, stream=stream)
    texts = ["", ""]
    for chunk in events(reply) if stream else [reply.json()]:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == ["a" + SAID + "a", "b" + SAID + "b"]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_in_four_lists(port: int, stream: bool) -> None:
    reply = post(port, logprobs=2, max_tokens=50, prompt="hé", stream=stream)
    told: dict[str, list[Any]] = defaultdict(list)
    text = ""
    for chunk in events(reply) if stream else [reply.json()]:
        for choice in chunk["choices"]:
            text += choice["text"]
            for name, values in (choice["logprobs"] or {}).items():
                told[name] += values
    assert "".join(told["tokens"]) == text == SAID + "hé"
    assert len({len(values) for values in told.values()}) == 1
    for offset, token, logprob, top in zip(
        told["text_offset"], told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True
    ):
        assert text[offset : offset + len(token)] == token
        assert top[token] == logprob == max(top.values())
        assert len(top) == 2


def test_stop_seed_and_ours_reach_the_engine(port: int) -> None:
    cut = post(port, prompt="one two", stop=" You", max_tokens=50).json()["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == ("I see no pictures.", "stop")
    longer = post(port, max_tokens=40, ignore_eos=True, seed=1, top_k=3).json()
    assert longer["usage"]["completion_tokens"] == 40


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": []}, "prompt", None),
        ({"prompt": None}, "prompt", "invalid_type"),
        ({"prompt": ["a", 1]}, "prompt[1]", "invalid_type"),
        ({"prompt": [[1], []]}, "prompt[1]", None),
        ({"prompt": [-1]}, "prompt[0]", None),
        ({"prompt": [True]}, "prompt[0]", "invalid_type"),
        ({"prompt": [0xD800]}, "prompt", None),
        ({"prompt": ["a"] * 129}, "prompt", None),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt", None),
        ({"prompt": "word " * 201}, "prompt", "context_length_exceeded"),
        ({"prompt": ["a", "word " * 201]}, "prompt", "context_length_exceeded"),
        ({"prompt": ["a", "word " * 201], "stream": True}, "prompt", "context_length_exceeded"),
        ({"max_tokens": 0}, "max_tokens", None),
        ({"n": 9}, "n", None),
        ({"best_of": 3}, "best_of", "unsupported_parameter"),
        ({"best_of": 1, "n": 2}, "best_of", None),
        ({"suffix": "end"}, "suffix", "unsupported_parameter"),
        ({"echo": True, "logprobs": 1}, "echo", "unsupported_parameter"),
        ({"echo": True, "prompt": [97]}, "echo", "unsupported_parameter"),
        ({"logprobs": 6}, "logprobs", None),
        ({"logprobs": True}, "logprobs", "invalid_type"),
        ({"stop": ["a"] * 5}, "stop", None),
        ({"stream_options": {}}, "stream_options", None),
        ({"logit_bias": {"1": 5}}, "logit_bias", "unsupported_parameter"),
        ({"prompt_embeds": "x"}, "prompt_embeds", "unsupported_parameter"),
        ({"temperature": 3}, "temperature", None),
    ],
)
def test_what_is_wrong_is_told(port: int, fields: dict[str, Any], param: str, code: str | None) -> None:
    reply = post(port, **fields)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)


def test_best_of_that_changes_nothing_is_taken(port: int) -> None:
    assert len(post(port, best_of=2, n=2).json()["choices"]) == 2


def test_an_error_of_one_prompt_ends_a_stream_without_done(port: int) -> None:
    reply = post(port, prompt=["a", "[[fake: error 3]]"], stream=True, max_tokens=50)
    last = reply.text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"


def test_more_prompts_than_slots_all_get_their_answers(client: openai.OpenAI) -> None:
    prompts = [f"word{i}" for i in range(40)]
    made = client.completions.create(model="plain", prompt=prompts, max_tokens=100, stream=True)
    texts: dict[int, str] = defaultdict(str)
    for chunk in made:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {i: SAID + prompt for i, prompt in enumerate(prompts)}


def test_ovms_has_the_route_too(port: int) -> None:
    body = {"model": "plain", "prompt": "a", "max_tokens": 50}
    reply = httpx2.post(f"http://127.0.0.1:{port}/v3/completions", json=body)
    assert reply.json()["choices"][0]["text"] == SAID + "a"


def test_a_client_that_leaves_frees_every_prompts_slot() -> None:
    service = Service(SETTINGS)
    with serving(create_app(service, SETTINGS, wait=True)) as port:
        client = sdk(port)
        prompts = [f"[[fake: slow 0.05]] [[fake: length 100]] {i}" for i in range(5)]
        with client.completions.create(model="plain", prompt=prompts, max_tokens=100, stream=True) as stream:
            next(iter(stream))
        admission = service._models["plain"].admission
        deadline = time.monotonic() + 2.0
        while admission.running or admission.waiting:
            assert time.monotonic() < deadline, "the answers would have taken 12 s"
            time.sleep(0.01)


def test_our_own_engine_goes_on_with_plain_text() -> None:
    """What a template would have written can be written by hand, but for special tokens: those never come of text."""
    settings = Settings(models=(ModelConfig(name=PEEK),))
    with server_of(settings) as port:
        client = sdk(port)

        def ask(prompt: Any, **fields: Any) -> Any:
            return client.completions.create(model=PEEK, prompt=prompt, max_tokens=6, temperature=0, **fields)

        text = "user\nWhat colour is the shape?\nassistant\n"
        tokenizer = Tokenizer.from_file(str(ModelConfig(name=PEEK).path / "tokenizer.json"))
        ids = tokenizer.encode(text).ids
        first, again = ask([text, "The shape is"], logprobs=1), ask([ids], logprobs=1)
        assert first.choices[0].text == again.choices[0].text != first.choices[1].text
        assert first.choices[0].logprobs == again.choices[0].logprobs
        assert again.usage.prompt_tokens == len(ids)
        assert "".join(first.choices[0].logprobs.tokens).startswith(first.choices[0].text)
        with pytest.raises(openai.BadRequestError) as refused:
            ask([*ids, tokenizer.token_to_id("<|im_end|>")])
        assert refused.value.param == "prompt"
