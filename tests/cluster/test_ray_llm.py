"""Ray's own server of vLLM, behind our replica. Classes like Ray's stand in for it here, and our stand-in for vLLM's
application: what is proven is what we ask of them, and that a picture reaches it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from sightline.cluster import parcels, plan
from sightline.cluster.ray_llm import RayLlmReplica, placement
from sightline.cluster.refit import rule_of
from sightline.errors import EngineUnavailable
from sightline.types import EngineRequest, Finish, Image, Message, Text, TextDelta

pytestmark = pytest.mark.anyio

BUDGET = {"type": "CellBudget", "cell": 28, "min_pixels": 784, "max_pixels": 78400}
SEER: dict[str, Any] = {
    "model_loading_config": {"model_id": "seer", "model_source": "org/seer"},
    "engine": "ray.serve.llm",
    "options": {"budget": BUDGET},
    "engine_kwargs": {"tensor_parallel_size": 2, "limit_mm_per_prompt": {"image": 3}, "max_num_seqs": 5},
    "placement_group_config": {"bundles": [{"GPU": 1}, {"GPU": 1}], "strategy": "SPREAD"},
    "lora_config": {"max_num_adapters_per_replica": 2},
    "deployment_config": {"num_replicas": 2, "ray_actor_options": {"num_cpus": 2}},
}


class Config:
    def __init__(self, **fields: Any) -> None:
        self.fields = fields


class Ended:
    def __await__(self) -> Iterator[None]:
        return iter(())


class Server:
    """As far as Ray's is used."""

    made: ClassVar[list[Server]] = []

    def __init__(self, config: Config) -> None:
        self.config, self.started, self.well = config, False, True
        self.made.append(self)

    @classmethod
    def sync_init(cls, config: Config) -> Server:
        return cls(config)

    async def start(self) -> None:
        self.started = True

    async def check_health(self) -> None:
        if not self.well:
            raise RuntimeError("the engine is dead")

    async def __serve_build_asgi_app__(self) -> Starlette:
        sys.argv[:] = ["standin", "serve", "org/seer", "--served-model-name", "seer"]
        vllm = importlib.import_module("tests.engines.vllm_standin")
        return Starlette(
            routes=[
                Route("/health", vllm.health),
                Route("/v1/models", vllm.models),
                Route("/tokenize", vllm.tokenize, methods=["POST"]),
                Route("/v1/chat/completions", vllm.chat, methods=["POST"]),
            ]
        )

    def __del__(self) -> Ended:
        """As `LLMServer`'s, which is a coroutine; here also Python collects it."""
        self.started = False
        return Ended()

    @classmethod
    def get_deployment_options(cls, config: Config) -> dict[str, Any]:
        """As Ray 2.60 makes them: the replica itself stands in the first bundle, with one of vLLM's workers."""
        placed, own = config.fields["placement_group_config"], config.fields["deployment_config"]["ray_actor_options"]
        first = {**placed["bundles"][0], "CPU": own["num_cpus"]}
        return {
            **config.fields["deployment_config"],
            "placement_group_bundles": [first, *placed["bundles"][1:]],
            "placement_group_strategy": placed["strategy"],
        }


@pytest.fixture(autouse=True)
def rays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    for name, members in (
        ("ray", {}), ("ray.serve", {}), ("ray.serve.llm", {"LLMConfig": Config}),
        ("ray.serve.llm.deployment", {"LLMServer": Server}),
    ):  # fmt: skip
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    Server.made.clear()


def found() -> plan.Plan:
    return plan.of_llm_configs({"llm_configs": [SEER]})


def test_ray_is_told_all_that_it_knows_and_the_ingress_what_it_needs() -> None:
    told = found()
    (model,) = plan.to_settings(told.settings).models
    assert (model.name, model.max_images, model.max_concurrent) == ("seer", 3, 5)
    assert told.rays["seer"] == {field: value for field, value in SEER.items() if field not in ("engine", "options")}
    options = plan.model_options(told, plan.to_settings(told.settings), "seer")
    assert options["num_replicas"] == 2
    assert "PictureRouter" in options["request_router_config"]["request_router_class"]


def test_workers_of_a_model_are_placed_as_ray_places_them_on_machines_of_their_own() -> None:
    assert placement(found().rays["seer"]) == {
        "placement_group_bundles": [{"GPU": 1, "CPU": 2}, {"GPU": 1}],
        "placement_group_strategy": "SPREAD",
        "ray_actor_options": {"num_cpus": 2},
    }


def test_without_vllm_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.serve.llm", None)
    with pytest.raises(EngineUnavailable, match=r"needs vLLM beside Ray.*pip install 'ray\[serve,llm\]'"):
        placement(found().rays["seer"])


class Collected(RayLlmReplica):
    """Ray awaits `__del__`, and Python's collector does not."""

    def __del__(self) -> None:  # type: ignore[override]  # see above
        pass


@pytest.fixture
async def replica() -> AsyncIterator[RayLlmReplica]:
    told = found()
    made = Collected.__new__(Collected)
    await made.__init__(told.settings, "seer", told.rays["seer"])  # type: ignore[misc]  # as Ray makes it
    yield made
    await RayLlmReplica.__del__(made)


async def test_a_picture_reaches_vllm_and_its_words_come_back(replica: RayLlmReplica) -> None:
    info = parcels.to_answer(await replica.info())
    pixels = np.broadcast_to(np.array((255, 0, 0), np.uint8), (56, 84, 3)).copy()
    image = Image(pixels, "sha256:1", 84, 56, "image/png", 9)
    request = EngineRequest("r", "seer", (Message("user", (image, Text("what is it"))),))
    parcel, told = parcels.from_request(request), rule_of(info.vision)
    said = [
        parcels.to_answer(each)
        async for each in replica.generate(parcel, affinity=None, tokens=9, sized_by=told, answer=None)
    ]
    assert "84x56" in "".join(each.text for each in said if isinstance(each, TextDelta))
    assert "red" in "".join(each.text for each in said if isinstance(each, TextDelta))
    assert isinstance(said[-1], Finish)


async def test_vllm_may_fetch_nothing_and_its_death_is_rays_to_see(replica: RayLlmReplica) -> None:
    (server,) = Server.made
    assert server.config.fields["engine_kwargs"]["allowed_media_domains"] == ["none.invalid"]
    assert server.config.fields["engine_kwargs"]["tensor_parallel_size"] == 2
    await replica.check_health()
    server.well = False
    with pytest.raises(RuntimeError, match="dead"):
        await replica.check_health()
    await RayLlmReplica.__del__(replica)
    assert not server.started
