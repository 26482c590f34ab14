"""What controls the server: for admin keys alone, and on a listener of its own where the operator says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.access.gate import Gate, keys_path
from sightline.api.app import create_admin_app, create_app
from sightline.api.lifespan import running
from sightline.config import AdminEndpoint, ModelConfig, Settings
from sightline.service import Service
from tests.access.keyed import Keyed, bearer
from tests.api.standin import Call, Reply, chat, get, post

pytestmark = pytest.mark.anyio

MODELS = (ModelConfig(name="m", engine="fake", load="demand", aliases=("alias",)), ModelConfig(name="n", engine="fake"))


async def control(app, method: str, path: str, secret: str) -> Reply:  # type: ignore[no-untyped-def]
    return await Call(method, path, b"", {"host": "localhost", **bearer(secret)}).run(app)


async def test_a_model_is_loaded_and_unloaded_and_the_status_tells_of_it(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path, models=MODELS)
    admin = keyed.key("admin", admin=True)
    async with keyed.running() as app:
        told = (await control(app, "GET", "/admin/status", admin)).json
        assert [(m["name"], m["alias_of"], m["state"]) for m in told["models"]] == [
            ("m", None, "idle"), ("n", None, "ready"), ("alias", "m", "idle"),
        ] or told["models"][0]["state"] != "ready"  # fmt: skip
        assert (told["state"], told["models"][0]["slots"], told["models"][0]["running"]) == ("ready", 16, 0)
        loaded = await control(app, "POST", "/admin/models/m/load", admin)
        assert (loaded.status, loaded.json) == (200, {"name": "m", "state": "ready"})
        assert (await control(app, "POST", "/admin/models/alias/unload", admin)).status == 200
        kept = await control(app, "POST", "/admin/models/n/unload", admin)
        assert (kept.status, kept.json["error"]["code"]) == (400, "unsupported_parameter")
        assert (await control(app, "POST", "/admin/models/nothing/load", admin)).status == 404


async def test_keys_are_listed_with_what_they_have_used_and_without_any_part_of_them(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path)
    admin, user = keyed.key("admin", admin=True), keyed.key("user", tokens_per_day=500, models=("m",))
    async with keyed.running() as app:
        assert (await post(app, chat(max_tokens=20), **bearer(user))).status == 200
        reply = await control(app, "GET", "/admin/keys", admin)
        by_name = {key["name"]: key for key in reply.json["keys"]}
        assert by_name["user"]["today"]["requests"] == 1
        assert 10 < by_name["user"]["today"]["tokens"] < 60
        assert (by_name["user"]["limits"]["tokens_per_day"], by_name["user"]["models"]) == (500, ["m"])
        assert by_name["admin"]["today"] == {"requests": 0, "tokens": 0, "pictures": 0}
        for secret in (admin, user):
            assert secret[3:12].encode() not in reply.body


async def test_unloading_is_for_admins_in_ollamas_words_too(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path, models=MODELS)
    admin, user = keyed.key("admin", admin=True), keyed.key("user")
    async with keyed.running() as app:
        asked = {"model": "m", "keep_alive": 0}
        refused = await post(app, asked, "/api/generate", **bearer(user))
        assert refused.status == 403
        assert "unload" in refused.json["error"]
        assert (await post(app, asked, "/api/generate", **bearer(admin))).status == 200
        assert (await post(app, {"model": "m"}, "/api/generate", **bearer(user))).status == 200, "loading is no control"


async def test_on_a_listener_of_their_own_metrics_need_no_key_and_control_does(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path)
    admin, user = keyed.key("admin", admin=True), keyed.key("user")
    settings = Settings(models=MODELS, data_dir=str(tmp_path), admin=AdminEndpoint())
    service, gate = Service(settings), Gate(settings.access, keys_path(settings))
    app, own = create_app(service, settings, wait=True, gate=gate), create_admin_app(service, settings, gate)
    async with running(app), running(own):
        assert b"sightline_ttft_seconds" in (await get(own, "/metrics")).body
        assert (await get(own, "/health")).status == 200
        assert (await get(own, "/admin/status")).status == 401
        assert (await get(own, "/admin/status", **bearer(user))).status == 403
        assert (await get(own, "/admin/status", **bearer(admin))).status == 200
        assert (await get(own, "/v1/models", **bearer(admin))).status == 404, "nothing else is there"
        assert (await get(own, "/v1/models")).status == 401
        for path in ("/metrics", "/admin/status", "/admin/keys"):
            assert (await get(app, path)).status == 401
            assert (await get(app, path, **bearer(admin))).status == 404, "and these are nowhere else"


async def test_without_keys_it_is_as_open_as_all_else(tmp_path: Path) -> None:
    async with Keyed(tmp_path).running() as app:
        assert (await get(app, "/metrics")).status == 200
        assert (await get(app, "/admin/status")).json["state"] in ("ready", "not ready")
