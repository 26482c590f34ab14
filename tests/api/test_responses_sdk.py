"""The Responses API with OpenAI's own SDK, over a socket, on the real service and the fake engine.

Every reply and every event is read strictly by the SDK's types, which its own client does not do.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai.types.responses import Response as SdkResponse
from openai.types.responses import ResponseStreamEvent
from openai.types.responses.response_compaction_item import ResponseCompactionItem
from openai.types.responses.response_item_list import ResponseItemList
from PIL import Image as PILImage
from pydantic import BaseModel, TypeAdapter

from sightline.api.responses.items import unseal
from sightline.config import ModelConfig, Settings
from tests.api.serving import server_of

SETTINGS = Settings(
    models=(
        ModelConfig(name="fake", engine="fake", max_concurrent=8),
        ModelConfig(name="slow", engine="fake", options={"step_s": 0.005}),
        ModelConfig(name="small", engine="fake", options={"context_length": 64}),
    )
)
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def data_url(width: int, height: int, colour: str) -> str:
    file = io.BytesIO()
    PILImage.new("RGB", (width, height), colour).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def picture(*args: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "input_image", "image_url": data_url(*args), "detail": "auto", **fields}


def user(*content: Any) -> Any:
    parts = [{"type": "input_text", "text": c} if isinstance(c, str) else c for c in content]
    return [{"type": "message", "role": "user", "content": parts}]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with server_of(SETTINGS) as port:
        yield port


@pytest.fixture(scope="module")
def client(port: int) -> Iterator[openai.OpenAI]:
    """Checks every body that passes against the SDK's types, strictly."""

    def check(response: httpx2.Response) -> None:
        if response.headers.get("content-type", "").startswith("text/event-stream") or response.status_code != 200:
            return
        response.read()
        match (body := response.json())["object"]:
            case "response" if "output" in body:
                SdkResponse.model_validate_json(response.content, strict=True)
            case "list":
                ResponseItemList.model_validate_json(response.content, strict=True)

    http = httpx2.Client(event_hooks={"response": [check]})
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=30, http_client=http
    ) as client:
        yield client


def events_of(port: int, method: str = "POST", path: str = "", **body: Any) -> list[dict[str, Any]]:
    """A stream's events as they are on the wire, each as strictly read as it can be."""
    url = f"http://127.0.0.1:{port}/v1/responses{path}"
    reply = httpx2.request(method, url, json=body or None, timeout=30)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    blocks = reply.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    events = []
    for block in blocks[:-2]:
        name, data = block.split("\n")
        EVENTS.validate_json(data.removeprefix("data: "), strict=True)
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


# --- an answer -------------------------------------------------------------------------------------------------------


def test_a_string_is_answered(client: openai.OpenAI) -> None:
    reply = client.responses.create(model="fake", input="hello", metadata={"k": "v"}, instructions="Be brief.")
    assert reply.output_text.endswith("You said: hello")
    assert (reply.status, reply.error, reply.incomplete_details) == ("completed", None, None)
    assert (reply.metadata, reply.instructions, reply.store) == ({"k": "v"}, "Be brief.", True)
    assert reply.completed_at is not None
    usage = reply.usage
    assert usage is not None
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_pictures_are_seen_and_told_of(client: openai.OpenAI) -> None:
    raw = client.responses.with_raw_response.create(
        model="fake", input=user(picture(600, 300, "red"), "what is it?", picture(56, 56, "blue", detail="low"))
    )
    reply = raw.parse()
    assert "2 pictures: 600x300 mostly red; 56x56 mostly blue" in reply.output_text
    assert reply.model_extra is not None
    seen = reply.model_extra["sightline"]["images"]
    assert [(p["width"], p["height"]) for p in seen] == [(600, 300), (56, 56)]
    assert raw.headers["x-sightline-engine"] == "fake"
    assert reply.usage is not None
    details = reply.usage.input_tokens_details.to_dict()
    assert details["image_tokens"] == sum(p["tokens"] for p in seen)


def test_a_stream_is_the_whole_answer_in_pieces(client: openai.OpenAI, port: int) -> None:
    ask: dict[str, Any] = {"model": "fake", "input": user(picture(64, 48, "green"), "naïve 日本 👩‍👩‍👧")}
    whole = client.responses.create(**ask)
    events = events_of(port, **ask, stream=True)
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    assert "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta") == whole.output_text
    final = SdkResponse.model_validate(events[-1]["response"])
    assert final.output_text == whole.output_text
    assert final.usage == whole.usage
    assert {e["response"]["id"] for e in events if "response" in e} == {final.id}


def test_the_helper_that_accumulates_a_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model="fake", input="[[fake: think Hm.]]one two three") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text.endswith("one two three")
    assert [item.type for item in final.output] == ["reasoning", "message"]
    assert "response.reasoning_text.delta" in kinds


def test_the_async_client() -> None:
    async def main() -> None:
        with server_of(SETTINGS) as port:
            base = f"http://127.0.0.1:{port}/v1"
            async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as client:
                reply = await client.responses.create(model="fake", input="hello")
                assert (await client.responses.retrieve(reply.id)).output_text == reply.output_text
                stream = await client.responses.create(model="fake", input="hello", stream=True)
                kinds = [event.type async for event in stream]
                assert kinds[-1] == "response.completed"
                items = [item async for item in client.responses.input_items.list(reply.id)]
                assert [item.type for item in items] == ["message"]
                await client.responses.delete(reply.id)
                with pytest.raises(openai.NotFoundError):
                    await client.responses.retrieve(reply.id)

    asyncio.run(main())


class Weather(BaseModel):
    city: str


WEATHER = openai.pydantic_function_tool(Weather, name="get_weather")


def flat(tool: Any) -> dict[str, Any]:
    return {"type": "function", **tool["function"]}


def test_calls_and_their_outputs_with_pictures(client: openai.OpenAI, port: int) -> None:
    tools: Any = [flat(WEATHER)]
    script = '[[fake: tool get_weather {"city": "Oslo"}]][[fake: tool get_weather {"city": "Rome"}]]'
    first = client.responses.create(model="fake", input=script, tools=tools)
    calls = [item for item in first.output if item.type == "function_call"]
    assert [json.loads(call.arguments) for call in calls] == [{"city": "Oslo"}, {"city": "Rome"}]
    assert first.status == "completed"
    outputs: Any = [
        {"type": "function_call_output", "call_id": calls[0].call_id, "output": "rain"},
        {
            "type": "function_call_output",
            "call_id": calls[1].call_id,
            "output": [{"type": "input_text", "text": "a photograph"}, picture(90, 60, "yellow")],
        },
    ]
    second = client.responses.create(model="fake", previous_response_id=first.id, input=outputs, tools=tools)
    assert "90x60 mostly yellow" in second.output_text
    kinds = [e["type"] for e in events_of(port, model="fake", input=script, tools=tools, stream=True)]
    assert kinds.count("response.function_call_arguments.done") == 2


def test_parse_gives_calls_their_arguments(client: openai.OpenAI) -> None:
    script = '[[fake: tool get_weather {"city": "Oslo"}]]'
    reply = client.responses.parse(model="fake", input=script, tools=[flat(WEATHER)])  # type: ignore[list-item]
    call = reply.output[0]
    assert call.type == "function_call"
    assert call.parsed_arguments == {"city": "Oslo"}


def test_json_comes_when_it_is_asked_for(client: openai.OpenAI) -> None:
    text: Any = {"format": {"type": "json_object"}}
    reply = client.responses.create(model="fake", input=user(picture(40, 20, "red"), "hi"), text=text)
    assert json.loads(reply.output_text)
    assert reply.text is not None
    assert reply.text.format is not None
    assert reply.text.format.type == "json_object"


def test_logprobs_come_when_they_are_asked_for(client: openai.OpenAI, port: int) -> None:
    include: Any = ["message.output_text.logprobs"]
    reply = client.responses.create(model="fake", input="[[fake: say a b]]", include=include, top_logprobs=2)
    message = reply.output[0]
    assert message.type == "message"
    part = message.content[0]
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert "".join(p.token for p in part.logprobs) == "a b"
    assert all(len(p.top_logprobs) == 2 for p in part.logprobs)
    deltas = events_of(port, model="fake", input="[[fake: say a b]]", include=include, stream=True)
    assert any(e.get("logprobs") for e in deltas if e["type"] == "response.output_text.delta")


def test_length_and_refusal(client: openai.OpenAI, port: int) -> None:
    cut = client.responses.create(model="fake", input="one two three four", max_output_tokens=3)
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"
    assert cut.output[0].status == "incomplete"  # type: ignore[union-attr]
    assert events_of(port, model="fake", input="[[fake: length 2]]", stream=True)[-1]["type"] == "response.incomplete"
    refused = client.responses.create(model="fake", input="[[fake: refuse]]")
    content = refused.output[0].content[0]  # type: ignore[union-attr, index]
    assert content.type == "refusal"


def test_a_fault_on_the_way(client: openai.OpenAI, port: int) -> None:
    events = events_of(port, model="fake", input="one [[fake: error 2]]", stream=True)
    assert [e["type"] for e in events[-2:]] == ["error", "response.failed"]
    assert events[-2]["code"] == "server_error"
    assert events[-1]["response"]["error"]["code"] == "server_error"
    kept = client.responses.retrieve(events[-1]["response"]["id"])
    assert kept.status == "failed"
    with pytest.raises(openai.InternalServerError):
        client.responses.create(model="fake", input="one [[fake: error 2]]")


# --- going on --------------------------------------------------------------------------------------------------------


def test_a_follow_up_sees_the_whole_conversation(client: openai.OpenAI) -> None:
    first = client.responses.create(
        model="fake", input=user(picture(600, 300, "red"), "first"), instructions="[[fake: say never]]"
    )
    second = client.responses.create(model="fake", input=user(picture(30, 30, "blue"), "second"), store=True,
                                     previous_response_id=first.id)  # fmt: skip
    third = client.responses.create(model="fake", input="third", previous_response_id=second.id)
    assert "2 pictures: 600x300 mostly red; 30x30 mostly blue" in third.output_text
    assert third.instructions is None
    assert third.previous_response_id == second.id
    assert third.usage is not None
    assert second.usage is not None
    assert third.usage.input_tokens > second.usage.input_tokens


def test_input_items_are_listed(client: openai.OpenAI) -> None:
    first = client.responses.create(model="fake", input=user(picture(20, 20, "red"), "first"))
    second = client.responses.create(model="fake", input="second", previous_response_id=first.id)
    listing = client.responses.input_items.list
    items = list(listing(second.id, order="asc"))
    assert [getattr(item, "role", None) for item in items] == ["user", "assistant", "user"]
    assert items[0].content[0].image_url is None  # type: ignore[union-attr, index]
    newest_first = list(listing(second.id, limit=1))  # follows the pages
    assert [item.id for item in newest_first] == [item.id for item in reversed(items)]
    page = listing(second.id, order="asc", after=items[0].id or "", limit=1)
    assert [item.id for item in page.data] == [items[1].id]
    assert page.has_more
    shown = listing(first.id, include=["message.input_image.image_url"]).data[0]
    assert shown.content[0].image_url == data_url(20, 20, "red")  # type: ignore[union-attr, index]


def test_a_stored_item_can_be_referred_to(client: openai.OpenAI) -> None:
    first = client.responses.create(model="fake", input=user(picture(20, 20, "red"), "first"))
    item = client.responses.input_items.list(first.id).data[0]
    again: Any = [{"type": "item_reference", "id": item.id}, {"role": "user", "content": "what was it?"}]
    assert "1 picture: 20x20 mostly red" in client.responses.create(model="fake", input=again).output_text


def test_what_is_not_stored_is_not_there(client: openai.OpenAI) -> None:
    reply = client.responses.create(model="fake", input="hello", store=False)
    with pytest.raises(openai.NotFoundError, match=r"There is no response .* Responses are kept for 24 hours"):
        client.responses.retrieve(reply.id)
    with pytest.raises(openai.NotFoundError) as refused:
        client.responses.create(model="fake", input="go on", previous_response_id=reply.id)
    assert (refused.value.param, refused.value.code) == ("previous_response_id", "previous_response_not_found")


def test_a_deleted_response_ends_its_conversation(client: openai.OpenAI) -> None:
    first = client.responses.create(model="fake", input="hello")
    second = client.responses.create(model="fake", input="more", previous_response_id=first.id)
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="fake", input="go on", previous_response_id=second.id)
    assert client.responses.retrieve(second.id).id == second.id
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(first.id)


def test_a_conversation_is_made_short(client: openai.OpenAI) -> None:
    """The users' words and pictures stay as they were; the model's own summary stands for the rest."""
    first = client.responses.create(model="fake", input=user(picture(60, 30, "red"), "first"))
    ask = client.responses.with_raw_response.compact
    raw = ask(model="fake", input="second", previous_response_id=first.id)
    short = raw.parse()
    assert short.object == "response.compaction"
    assert short.usage.output_tokens > 0
    *said, summary = json.loads(raw.content)["output"]  # the SDK's type has no room for the users' messages
    assert [item["content"][-1]["text"] for item in said] == ["first", "second"]
    ResponseCompactionItem.model_validate(summary, strict=True)
    assert "Summarise this conversation" in unseal(summary["encrypted_content"]), "the fake engine says what it heard"
    more: Any = [*said[:1], summary, {"role": "user", "content": "go on"}]
    reply = client.responses.create(model="fake", input=more)
    assert "60x30 mostly red" in reply.output_text
    listed = client.responses.input_items.list(reply.id, order="asc").data
    assert [item.type for item in listed] == ["message", "compaction", "message"]
    foreign: Any = [{"type": "compaction", "encrypted_content": "gAAAA"}, *more]
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="fake", input=foreign)
    assert refused.value.param == "input[0].encrypted_content"
    with pytest.raises(openai.BadRequestError, match="input"):
        ask(model="fake")


# --- in the background -----------------------------------------------------------------------------------------------


def wait_for(client: openai.OpenAI, response_id: str) -> SdkResponse:
    """The server's own stream tells when it is over."""
    for _ in client.responses.retrieve(response_id, stream=True):
        pass
    return client.responses.retrieve(response_id)


def test_a_background_response_is_polled(client: openai.OpenAI) -> None:
    begun = client.responses.create(model="slow", input=user(picture(60, 30, "red"), "hello"), background=True)
    assert begun.status == "queued"
    assert begun.background is True
    done = wait_for(client, begun.id)
    assert done.status == "completed"
    assert "60x30 mostly red" in done.output_text
    more = client.responses.create(model="slow", input="more", previous_response_id=done.id)
    assert "60x30 mostly red" in more.output_text


def test_its_stream_can_be_left_and_taken_up_again(client: openai.OpenAI, port: int) -> None:
    words = " ".join(f"w{i}" for i in range(60))
    stream = client.responses.create(model="slow", input=words, background=True, stream=True)
    seen: list[dict[str, Any]] = []
    for event in stream:
        seen.append(event.to_dict())
        if event.sequence_number == 9:
            break
    stream.close()
    assert [e["type"] for e in seen[:3]] == ["response.created", "response.queued", "response.in_progress"]
    response_id = seen[0]["response"]["id"]
    rest = events_of(port, "GET", f"/{response_id}?stream=true&starting_after=9")
    assert [e["sequence_number"] for e in seen + rest] == list(range(len(seen + rest)))
    text = "".join(e["delta"] for e in seen + rest if e["type"] == "response.output_text.delta")
    assert text == client.responses.retrieve(response_id).output_text
    assert text.endswith(words)
    assert events_of(port, "GET", f"/{response_id}?stream=true")[10:] == rest  # it is over: told again


def test_a_background_response_is_cancelled(client: openai.OpenAI, port: int) -> None:
    begun = client.responses.create(model="slow", input="[[fake: slow 9]]hello", background=True)
    with pytest.raises(openai.BadRequestError, match="not finished"):
        client.responses.create(model="slow", input="more", previous_response_id=begun.id)
    assert client.responses.retrieve(begun.id).status in ("queued", "in_progress")
    assert client.responses.cancel(begun.id).status == "cancelled"
    assert client.responses.cancel(begun.id).status == "cancelled"
    last = events_of(port, "GET", f"/{begun.id}?stream=true")[-1]
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "cancelled")


def test_a_background_response_is_deleted_while_it_runs(client: openai.OpenAI) -> None:
    begun = client.responses.create(model="slow", input="[[fake: slow 9]]hello", background=True)
    client.responses.delete(begun.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(begun.id)


def test_a_background_response_can_fail(client: openai.OpenAI) -> None:
    broken: Any = user({"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"})
    begun = client.responses.create(model="fake", input=broken, background=True)
    done = wait_for(client, begun.id)
    assert done.status == "failed"
    assert done.error is not None
    assert done.error.code == "invalid_image_format"


def test_only_background_responses_are_cancelled_or_streamed_again(client: openai.OpenAI) -> None:
    reply = client.responses.create(model="fake", input="hello")
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(reply.id)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.retrieve(reply.id, stream=True)
    with pytest.raises(openai.NotFoundError, match="model"):
        client.responses.create(model="nobody", input="hello", background=True)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="fake", input="hello", background=True, store=False)
    assert refused.value.param == "background"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("stream=maybe", "stream"),
        ("starting_after=3", "starting_after"),
        ("stream=true&starting_after=-1", "starting_after"),
        ("include=everything", "include[0]"),
        ("include[]=everything", "include[0]"),
        ("/input_items?limit=0", "limit"),
        ("/input_items?limit=101", "limit"),
        ("/input_items?limit=two", "limit"),
        ("/input_items?order=up", "order"),
        ("/input_items?after=msg_of_another", "after"),
    ],
)
def test_queries_that_are_refused(client: openai.OpenAI, port: int, query: str, param: str) -> None:
    reply = client.responses.create(model="fake", input="hello")
    path = query if query.startswith("/") else f"?{query}"
    refused = httpx2.get(f"http://127.0.0.1:{port}/v1/responses/{reply.id}{path}")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param


# --- what fits -------------------------------------------------------------------------------------------------------


def test_tokens_are_counted(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "fake", "input": user(picture(600, 300, "red"), "what is it?")}
    counted = client.responses.input_tokens.count(**ask)
    reply = client.responses.create(**ask)
    assert reply.usage is not None
    assert counted.input_tokens == reply.usage.input_tokens
    assert counted.object == "response.input_tokens"


def test_a_conversation_that_is_too_long(client: openai.OpenAI, port: int) -> None:
    turns: Any = []
    for i in range(12):
        turns += [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i}"}]
    turns += [{"role": "user", "content": "last"}]
    ask: dict[str, Any] = {"model": "small", "input": turns, "instructions": "Be brief.", "max_output_tokens": 12}
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**ask)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")
    reply = client.responses.create(**ask, truncation="auto")
    assert reply.output_text.endswith("last")
    assert reply.model_extra is not None
    dropped = reply.model_extra["sightline"]["turns_dropped"]
    kept = [*turns[2 * dropped :]]
    count = client.responses.input_tokens.count(model="small", instructions="Be brief.", input=kept).input_tokens
    assert reply.usage is not None
    assert reply.usage.input_tokens == count
    with pytest.raises(openai.BadRequestError):  # no more was dropped than had to be
        client.responses.create(**{**ask, "input": turns[2 * (dropped - 1) :]})
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="small", input="word " * 100, truncation="auto")
