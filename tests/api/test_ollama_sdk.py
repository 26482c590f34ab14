"""Ollama's own Python client against the real service and the fake engine, over a socket."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import ollama
import pytest
from PIL import Image as PILImage

from sightline.config import HttpLimits, ModelConfig, Settings
from tests.api.serving import server_of

MODEL = "org/fake"
SETTINGS = Settings(
    models=(
        ModelConfig(name=MODEL, engine="fake", max_concurrent=4, aliases=("eyes:7b",)),
        ModelConfig(name="narrow", engine="fake", max_concurrent=1, max_queue=0),
        ModelConfig(name="asleep", engine="fake", load="demand", options={"startup_s": 0.1}),
    ),
    http=HttpLimits(keepalive_s=0.1),
)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with server_of(SETTINGS) as port:
        yield port


@pytest.fixture
def client(port: int) -> Iterator[ollama.Client]:
    with ollama.Client(f"http://127.0.0.1:{port}", timeout=30) as client:
        yield client


def png(width: int, height: int, colour: str) -> bytes:
    file = io.BytesIO()
    PILImage.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


def user(text: str, *images: bytes) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text, "images": list(images)}]


def weather(city: str) -> str:
    """Tells the weather.

    Args:
      city: Where.
    """
    return city


def test_the_model_sees_the_pictures_that_were_sent(client: ollama.Client) -> None:
    reply = client.chat(MODEL, user("What is this?", png(600, 300, "red"), png(56, 56, "blue")))
    assert reply.message.content == "I see 2 pictures: 600x300 mostly red; 56x56 mostly blue. You said: What is this?"
    assert (reply.model, reply.message.role, reply.done, reply.done_reason) == (MODEL, "assistant", True, "stop")
    generated = client.generate(MODEL, "And this?", images=[png(64, 48, "green")])
    assert generated.response == "I see 1 picture: 64x48 mostly green. You said: And this?"


def test_a_stream_says_what_the_whole_answer_says(client: ollama.Client) -> None:
    messages = user("naïve 日本 👩‍👩‍👧", png(64, 48, "red"))
    whole = client.chat(MODEL, messages)
    *parts, last = list(client.chat(MODEL, messages, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert [part.done for part in parts] == [False] * len(parts)
    assert (last.done, last.done_reason, last.message.content) == (True, "stop", "")
    assert (last.prompt_eval_count, last.eval_count) == (whole.prompt_eval_count, whole.eval_count)
    *pieces, end = list(client.generate(MODEL, "one two", system="Be brief.", stream=True))
    assert "".join(piece.response or "" for piece in pieces) == "I see no pictures. You said: one two"
    assert end.done


def test_durations_are_true(client: ollama.Client) -> None:
    reply = client.chat(MODEL, user("[[fake: slow 0.05]] [[fake: say a b c]]"))
    assert reply.total_duration is not None
    assert reply.eval_duration is not None
    assert reply.prompt_eval_duration is not None
    assert reply.eval_count == 3
    assert 0.1e9 <= reply.eval_duration <= reply.total_duration < 10e9
    assert reply.load_duration == 0
    assert reply.prompt_eval_duration + reply.eval_duration <= reply.total_duration


def test_a_model_is_loaded_when_it_is_asked_for(client: ollama.Client) -> None:
    assert "asleep:latest" in [m.model for m in client.list().models]
    assert "asleep:latest" not in [m.model for m in client.ps().models]
    loaded = client.chat("asleep", [])
    assert (loaded.done, loaded.done_reason, loaded.message.content) == (True, "load", "")
    assert "asleep:latest" in [m.model for m in client.ps().models]
    assert client.generate("asleep", "").done_reason == "load"
    for unloaded in (client.chat("asleep", [], keep_alive=0), client.generate("asleep", keep_alive="0s")):
        assert (unloaded.done, unloaded.done_reason) == (True, "unload")
    assert "asleep:latest" not in [m.model for m in client.ps().models]
    with pytest.raises(ollama.ResponseError, match="keep_alive") as refused:
        client.chat(MODEL, [], keep_alive=0)
    assert refused.value.status_code == 400, "its operator did not say that it may be loaded on demand"
    assert "org/fake:latest" in [m.model for m in client.ps().models]
    for keep in (0, 300, "5m", "-1s", "1h30m", -1):
        assert client.chat("asleep", user("hello"), keep_alive=keep).message.content


def test_options_reach_the_engine(client: ollama.Client) -> None:
    reply = client.chat(MODEL, user("[[fake: say one two three]]"), options={"num_predict": 2, "num_ctx": 32768})
    assert (reply.message.content, reply.done_reason) == ("one two", "length")
    stopped = client.chat(MODEL, user("[[fake: say one two three]]"), options=ollama.Options(stop=["two"], top_k=40))
    assert (stopped.message.content, stopped.done_reason) == ("one ", "stop")
    for endless in (-1, -2):
        assert client.chat(MODEL, user("[[fake: say a b]]"), options={"num_predict": endless}).message.content == "a b"


def test_json_is_made_when_it_is_asked_for(client: ollama.Client) -> None:
    reply = client.chat(MODEL, user("hello"), format="json")
    assert reply.message.content == '{"pictures": [], "you_said": "hello"}'
    schema = {"type": "object", "properties": {"colour": {"enum": ["red"]}}, "required": ["colour"]}
    assert json.loads(client.chat(MODEL, user("hello"), format=schema).message.content or "") == {"colour": "red"}
    with pytest.raises(ollama.ResponseError, match="format") as refused:
        client.chat(MODEL, user("hello"), format={"type": "nothing"})
    assert refused.value.status_code == 400
    assert "response_format" not in refused.value.error


def test_a_tool_is_called_and_its_result_comes_back(client: ollama.Client) -> None:
    messages = user('[[fake: tool weather {"city": "Oslo"}]] [[fake: tool weather {"city": "Bergen"}]]')
    called = client.chat(MODEL, messages, tools=[weather])
    assert called.done_reason == "stop"
    assert called.message.tool_calls is not None
    assert [dict(c.function.arguments) for c in called.message.tool_calls] == [{"city": "Oslo"}, {"city": "Bergen"}]
    streamed = [c for part in client.chat(MODEL, messages, tools=[weather], stream=True)
                for c in part.message.tool_calls or ()]  # fmt: skip
    assert streamed == list(called.message.tool_calls)
    results = [{"role": "tool", "tool_name": "weather", "content": "rain"}] * 2
    answer = client.chat(MODEL, [*messages, called.message, *results, *user("So?", png(64, 48, "cyan"))])
    assert answer.message.content == "I see 1 picture: 64x48 mostly cyan. You said: So?"


def test_thoughts_stand_apart(client: ollama.Client) -> None:
    messages = user("[[fake: think so so]] [[fake: say yes]]")
    reply = client.chat(MODEL, messages, think=True)
    assert (reply.message.thinking, reply.message.content) == ("so so", "yes")
    parts = list(client.chat(MODEL, messages, think="low", stream=True))
    assert "".join(part.message.thinking or "" for part in parts) == "so so"
    assert client.chat(MODEL, messages, think=False).message.thinking is None
    assert client.generate(MODEL, "[[fake: think hm]] [[fake: say yes]]").thinking == "hm"


def test_logprobs_are_told(client: ollama.Client) -> None:
    reply = client.chat(MODEL, user("[[fake: say a b]]"), logprobs=True, top_logprobs=2)
    assert reply.logprobs is not None
    assert [p.token for p in reply.logprobs] == ["a", " b"]
    assert all(p.logprob < 0 and len(p.top_logprobs or ()) == 2 for p in reply.logprobs)
    parts = client.generate(MODEL, "[[fake: say a b]]", logprobs=True, stream=True)
    assert [p.token for part in parts for p in part.logprobs or ()] == ["a", " b"]


def test_texts_become_vectors(client: ollama.Client) -> None:
    reply = client.embed(MODEL, ["a red circle", "a red circle!", "quarterly tax returns"])
    near, like, far = np.array(reply.embeddings)
    assert near @ like > near @ far
    assert np.allclose([near @ near, like @ like, far @ far], 1)
    assert reply.prompt_eval_count is not None
    assert reply.total_duration is not None
    assert (reply.prompt_eval_count > 0, reply.total_duration > 0, reply.load_duration) == (True, True, 0)
    assert np.allclose(client.embed(MODEL, "a red circle").embeddings[0], near)
    older = np.array(client.embeddings(MODEL, "a red circle").embedding)
    assert np.allclose(older / np.linalg.norm(older), near)
    assert client.embed(MODEL, "").embeddings == []
    with pytest.raises(ollama.ResponseError, match=re.escape("input[1]")) as refused:
        client.embed(MODEL, ["x", ""])
    assert refused.value.status_code == 400


def test_a_raw_prompt_goes_past_the_template(client: ollama.Client) -> None:
    raw, templated = (client.generate(MODEL, "[[fake: say yes]]", raw=raw) for raw in (True, False))
    assert raw.response == templated.response == "yes"
    assert raw.prompt_eval_count is not None
    assert templated.prompt_eval_count is not None
    assert raw.prompt_eval_count < templated.prompt_eval_count
    for fields in ({"system": "Be brief."}, {"images": [png(64, 48, "red")]}):
        with pytest.raises(ollama.ResponseError, match=next(iter(fields))) as refused:
            client.generate(MODEL, "x", raw=True, **fields)  # type: ignore[call-overload]
        assert refused.value.status_code == 400


def test_models_are_listed_shown_and_found_by_every_name(client: ollama.Client) -> None:
    listed = {m.model: m for m in client.list().models}
    assert set(listed) == {"org/fake:latest", "eyes:7b", "narrow:latest", "asleep:latest"}
    assert all(len(m.digest or "") == 64 for m in listed.values())
    shown = client.show("org/fake:latest")
    assert shown.capabilities == ["completion", "vision", "tools", "embedding"]
    assert shown.modelinfo == {
        "general.architecture": "fake", "general.basename": MODEL, "fake.context_length": 8192
    }  # fmt: skip
    running = {m.model: m for m in client.ps().models}
    assert running["org/fake:latest"].context_length == 8192
    for name in (*listed, MODEL, "narrow"):
        reply = client.chat(name, user("hello"))
        assert reply.message.content
        assert reply.model == name


def test_errors_have_their_status_and_name_the_place(client: ollama.Client) -> None:
    def refused(status: int, **fields: Any) -> str:
        with pytest.raises(ollama.ResponseError) as caught:
            client.chat(**{"model": MODEL, "messages": user("hello"), **fields})
        assert caught.value.status_code == status
        return caught.value.error

    assert refused(404, model="other") == "model 'other' not found"
    assert "messages[0].images[1]" in refused(400, messages=user("?", png(64, 48, "red"), b"nonsense"))
    assert "options.num_predict" in refused(400, options={"num_predict": 100_000})
    assert "options.temperature" in refused(400, options={"temperature": "hot"})
    assert refused(500, messages=user("[[fake: error 0]]"))
    with pytest.raises(ollama.ResponseError) as caught:
        client.pull("llama3")
    assert caught.value.status_code == 403


def test_a_fault_in_mid_stream_is_raised_after_what_was_said(client: ollama.Client) -> None:
    text = ""
    with pytest.raises(ollama.ResponseError, match="told to fail"):
        for part in client.chat(MODEL, user("[[fake: error 3]]"), stream=True):
            assert not part.done
            text += part.message.content or ""
    assert text == "I see no"


def test_a_full_server_says_so(client: ollama.Client) -> None:
    stream = client.chat("narrow", user("[[fake: slow 0.05]] hello"), stream=True)
    next(iter(stream))
    with pytest.raises(ollama.ResponseError) as refused:
        client.chat("narrow", user("hello"))
    assert refused.value.status_code == 503
    stream.close()  # type: ignore[attr-defined]


def test_nothing_but_lines_is_sent_while_a_model_is_slow(client: ollama.Client) -> None:
    """The client parses every line: a comment or an empty one would break it."""
    parts = client.chat(MODEL, user("[[fake: slow 0.25]] [[fake: say a b]]"), stream=True)
    assert [part.message.content for part in parts] == ["a", " b", ""]


def test_the_asynchronous_client(port: int) -> None:
    async def talk() -> tuple[str | None, str]:
        client = ollama.AsyncClient(f"http://127.0.0.1:{port}")
        whole = await client.chat(MODEL, user("hello", png(64, 48, "red")))
        stream = await client.chat(MODEL, user("hello", png(64, 48, "red")), stream=True)
        text = "".join([part.message.content or "" async for part in stream])
        assert (await client.list()).models
        assert (await client.generate(MODEL, "hello")).response
        return whole.message.content, text

    whole, text = asyncio.run(talk())
    assert whole == text == "I see 1 picture: 64x48 mostly red. You said: hello"
