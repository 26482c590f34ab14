"""OVMS' API: the routes of /v1 under /v3, the states of models, its errors, and its clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import openai
import pytest

from sightline.api.app import create_app
from sightline.api.ovms import ALIASES, to_version_status
from sightline.config import ModelConfig, Settings
from sightline.engines import EngineState, open_engine
from sightline.errors import EngineFailed
from sightline.items import ChoiceEvent, Item
from sightline.models import ModelStatus, ServedModel
from sightline.service import Service
from sightline.types import ChatRequest, TextDelta
from tests.api.serving import serving
from tests.api.standin import INFO, PREPARED, ScriptedService, app_of, chat, get, post
from tests.api.test_sdk import picture, user

pytestmark = pytest.mark.anyio

CHAT = "/v3/chat/completions"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# --- the routes of /v1 -----------------------------------------------------------------------------------------------


async def test_an_answer_is_that_of_v1() -> None:
    app = app_of(ScriptedService())
    there, here = await post(app, chat()), await post(app, chat(), CHAT)
    assert here.status == 200
    assert here.json | {"id": "", "created": 0} == there.json | {"id": "", "created": 0}
    assert (await post(app, chat(), CHAT + "/input_tokens")).json["input_tokens"] == 20
    assert (await get(app, "/v3/models")).json == (await get(app, "/v1/models")).json
    assert (await get(app, "/v3/models/m")).json["id"] == "m"


async def test_a_stream_is_that_of_v1_but_for_its_first_chunk() -> None:
    app = app_of(ScriptedService())
    there, here = [(await post(app, chat(stream=True, n=2), path)).events for path in ("/v1/chat/completions", CHAT)]
    first = [event["choices"][0]["delta"] for event in here[:2]]
    assert first == [{"role": "assistant", "content": None}] * 2
    assert [e["choices"][0]["delta"] for e in here[2:-1]] == [e["choices"][0]["delta"] for e in there[2:-1]]
    assert here[-1] == "[DONE]"


def test_every_alias_of_a_route_that_there_is_leads_there() -> None:
    app: Any = app_of(ScriptedService())
    paths = {route.path: route for dialect in app._dialects for route in dialect.routes}
    for ours, theirs in ALIASES.items():
        assert (ours in paths) == (theirs in paths)
        if ours in paths:
            assert paths[ours].methods == paths[theirs].methods


# --- errors ----------------------------------------------------------------------------------------------------------


async def test_errors_are_a_text_with_its_statuses() -> None:
    app = app_of(ScriptedService())
    replies = [
        (await post(app, b"{", CHAT), 412, "not valid JSON"),
        (await post(app, b"[]", CHAT), 412, "object"),
        (await post(app, chat(model=None), CHAT), 412, "'model'"),
        (await post(app, chat(model=5), CHAT), 412, "'model'"),
        (await post(app, chat(stream="yes"), CHAT), 412, "'stream'"),
        (await post(app, chat(temperature=9), CHAT), 400, "'temperature'"),
        (await post(app, b"x" * 10, CHAT, content_type="text/plain"), 415, "JSON"),
        (await get(app, "/v3/models/other"), 404, "'other'"),
        (await get(app, "/v3/elsewhere"), 404, "/v3/elsewhere"),
        (await get(app, "/v2/elsewhere"), 404, "/v2/elsewhere"),
        (await get(app, "/v1/config", "POST"), 405, "GET"),
    ]
    for reply, status, said in replies:
        assert reply.status == status
        assert list(reply.json) == ["error"]
        assert said in reply.json["error"]
        assert reply.headers["x-request-id"]
    assert isinstance((await get(app, "/v1/elsewhere")).json["error"], dict), "another dialect's"


async def broken(request: ChatRequest) -> AsyncIterator[Item]:
    yield PREPARED
    yield ChoiceEvent(0, TextDelta("A "))
    raise EngineFailed("The engine broke.")


@pytest.mark.parametrize(("path", "asked"), [(CHAT, chat()), ("/v3/completions", {"model": "m", "prompt": "hi"})])
async def test_a_late_fault_is_an_event(path: str, asked: dict[str, Any]) -> None:
    reply = await post(app_of(ScriptedService(script=broken)), {**asked, "stream": True}, path)
    assert reply.status == 200
    assert reply.events[-1] == {"error": "The engine broke."}
    assert "[DONE]" not in reply.events


# --- states ----------------------------------------------------------------------------------------------------------


def status(state: EngineState, *, available: bool = False, phase: Any = "serving") -> ModelStatus:
    return ModelStatus("m", state, "scripted", 1, INFO, available, phase)


@pytest.mark.parametrize(
    ("model", "state", "code"),
    [
        (status("unloaded"), "START", "OK"),
        (status("unloaded", available=True), "AVAILABLE", "OK"),
        (status("loading"), "LOADING", "OK"),
        (status("failed"), "LOADING", "UNKNOWN"),
        (status("ready"), "AVAILABLE", "OK"),
        (status("ready", phase="closing"), "UNLOADING", "OK"),
        (status("ready", phase="closed"), "END", "OK"),
    ],
)
async def test_the_life_of_a_model_in_its_words(model: ModelStatus, state: str, code: str) -> None:
    assert (await get(app_of(ScriptedService(statuses=(model,))), "/v1/config")).json == {
        "m": {
            "model_version_status": [
                {"version": "1", "state": state, "status": {"error_code": code, "error_message": code}}
            ]
        }
    }


async def test_a_real_model_goes_through_its_states() -> None:
    config = ModelConfig(name="m", engine="fake")
    model = ServedModel(config, lambda: open_engine(config))
    seen = [to_version_status(model.status()).state]
    model.start()
    seen.append(to_version_status(model.status()).state)
    await model.started()
    seen.append(to_version_status(model.status()).state)
    closing = asyncio.create_task(model.close())
    await asyncio.sleep(0)
    seen.append(to_version_status(model.status()).state)
    await closing
    seen.append(to_version_status(model.status()).state)
    assert seen == ["START", "LOADING", "AVAILABLE", "UNLOADING", "END"]


async def test_a_model_that_loads_on_demand_is_available() -> None:
    """Or a client that polls first would wait for ever."""
    config = ModelConfig(name="m", engine="fake", load="demand")
    assert to_version_status(ServedModel(config, lambda: open_engine(config)).status()).state == "AVAILABLE"


async def test_probes() -> None:
    service = ScriptedService()
    app = app_of(service)
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/m/ready"):
        reply = await get(app, path)
        assert (reply.status, reply.body) == (200, b"")
    assert (await get(app, "/v2")).json["name"] == "Sightline"
    metadata = (await get(app, "/v2/models/m")).json
    assert (metadata["name"], metadata["versions"]) == ("m", ["1"])
    service.statuses = (ModelStatus("org/m", "loading", "scripted", 5, None),)
    assert (await get(app, "/v2/health/live")).status == 200
    for path in ("/v2/health/ready", "/v2/models/org/m/ready", "/v2/models/other/ready", "/v2/models/other"):
        reply = await get(app, path)
        assert 400 <= reply.status < 500
        assert list(reply.json) == ["error"]
    assert (await get(app, "/v2/models/org/m")).json["name"] == "org/m"
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert (await get(app, path, host="elsewhere.example")).status != 421, "probes come under any name"


# --- clients ---------------------------------------------------------------------------------------------------------

ABOUT = {"model": "org/fake", "budget": "as-is", "context_length": 4096}
SETTINGS = Settings(models=(ModelConfig(name="org/fake", engine="fake"),))


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(create_app(Service(SETTINGS), SETTINGS)) as port:
        yield port


def poll_until_available(root: str, model: str) -> None:
    """As OVMS' demonstrations tell their readers to."""
    for _ in range(500):
        reply = httpx2.get(f"{root}/v1/config").json()
        versions = reply.get(model, {}).get("model_version_status", [])
        if any(version["state"] == "AVAILABLE" and version["status"]["error_code"] == "OK" for version in versions):
            return
        httpx2.get(f"{root}/v2/health/live").raise_for_status()
    raise AssertionError("it never was")


async def test_a_client_of_ovms(port: int) -> None:
    root = f"http://127.0.0.1:{port}"
    await asyncio.to_thread(poll_until_available, root, "org/fake")
    async with openai.AsyncOpenAI(base_url=f"{root}/v3", api_key="unused", max_retries=0, timeout=30) as client:
        assert [model.id async for model in client.models.list()] == ["org/fake"]
        ask: dict[str, Any] = {"model": "org/fake", "messages": user("What is this?", picture(64, 48, "red"))}
        whole = (await client.chat.completions.create(**ask)).choices[0].message.content
        assert whole is not None
        assert "64x48 mostly red" in whole
        text = ""
        async for chunk in await client.chat.completions.create(**ask, stream=True):
            if chunk.choices and chunk.choices[0].delta.content is not None:  # as the demonstrations do
                text += chunk.choices[0].delta.content
        assert text == whole
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="other", messages=user("hi"))
        failing: dict[str, Any] = {"model": "org/fake", "messages": user("[[fake: error 2]]"), "stream": True}
        with pytest.raises(openai.APIError):
            async for _ in await client.chat.completions.create(**failing):
                pass


async def test_our_own_engine_for_ovms(port: int) -> None:
    """The `remote` engine asks this server as if it were OVMS."""
    config = ModelConfig(
        name="through",
        engine="remote",
        options={"base_url": f"http://127.0.0.1:{port}/v3", "kind": "ovms", **ABOUT},
    )
    settings = Settings(models=(config,))
    service = Service(settings)
    await service.start()
    try:
        asked = chat(model="through", messages=user("Look", picture(56, 28, "blue")))
        reply = await post(create_app(service, settings), asked)
        assert reply.status == 200
        assert "56x28 mostly blue" in reply.json["choices"][0]["message"]["content"]
    finally:
        await service.close()
