"""For how long an answer is of use is the client's to say, in a header that is read in one place for every dialect."""

from __future__ import annotations

import pytest

from tests.api.standin import ScriptedService, app_of, chat, post

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat()),
        ("/v1/chat/completions", chat(stream=True)),
        ("/v1/chat/completions/input_tokens", chat()),
    ],
    ids=["whole", "streamed", "counted"],
)
async def test_the_service_is_told(path: str, body: dict[str, object]) -> None:
    service = ScriptedService()
    app = app_of(service)
    assert (await post(app, body, path, x_request_timeout="2.5")).status == 200
    assert (await post(app, body, path)).status == 200
    assert service.timeouts == [2.5, None]


@pytest.mark.parametrize("value", ["", "soon", "0", "0.0", "-1", "1e3", "nan", "inf", "5s", "1" * 20])
async def test_what_is_no_time_is_refused(value: str) -> None:
    service = ScriptedService()
    reply = await post(app_of(service), chat(), x_request_timeout=value)
    assert reply.status == 400
    assert reply.json["error"]["param"] == "x-request-timeout"
    assert "seconds" in reply.json["error"]["message"]
    assert service.requests == []
