"""What is deployed for sightline.yaml, and for Ray's `LLMConfig`s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sightline.cluster import plan as plans
from sightline.errors import InvalidRequest

QWEN: dict[str, Any] = {
    "model_loading_config": {"model_id": "qwen-vl", "model_source": "Qwen/Qwen2.5-VL-7B-Instruct"},
    "accelerator_type": "A10G",
    "deployment_config": {"autoscaling_config": {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 64}},
    "engine_kwargs": {"max_model_len": 8192, "tensor_parallel_size": 2, "limit_mm_per_prompt": {"image": 3}},
    "runtime_env": {"env_vars": {"HF_HUB_OFFLINE": "1"}},
}


def llm(**changes: Any) -> plans.Plan:
    return plans.of_llm_configs({"llm_configs": [{**QWEN, **changes}]})


def test_an_llm_config_is_a_model_on_vllm() -> None:
    plan = llm()
    (model,) = plans.to_settings(plan.settings).models
    assert (model.name, model.engine, model.source) == ("qwen-vl", "vllm", "Qwen/Qwen2.5-VL-7B-Instruct")
    assert model.max_images == 3
    assert model.options["engine_kwargs"] == QWEN["engine_kwargs"]
    options = plan.deployments["qwen-vl"]
    assert options["autoscaling_config"]["target_ongoing_requests"] == 64
    assert options["ray_actor_options"] == {
        "num_gpus": 2,
        "accelerator_type": "A10G",
        "runtime_env": {"env_vars": {"HF_HUB_OFFLINE": "1"}},
    }


def test_or_on_an_engine_of_ours() -> None:
    plan = llm(engine="fake", accelerator_type=None, engine_kwargs={"max_model_len": 512, "step_s": 0.1})
    (model,) = plans.to_settings(plan.settings).models
    assert model.engine == "fake"
    assert model.options == {"context_length": 512, "step_s": 0.1}
    assert "num_gpus" not in plan.deployments["qwen-vl"]["ray_actor_options"]


def test_a_model_without_a_source_is_its_id_at_the_hub() -> None:
    assert llm(model_loading_config={"model_id": "a/b"}).settings["models"][0]["source"] == "a/b"


@pytest.mark.parametrize(
    "placed", [{"bundles": [{"GPU": 1, "CPU": 1}, {"GPU": 1}]}, {"bundle_per_worker": {"GPU": 1, "CPU": 0.5}}]
)
def test_a_placement_group_is_one_bundle_on_one_machine(placed: dict[str, Any]) -> None:
    options = llm(placement_group_config=placed).deployments["qwen-vl"]
    assert options["placement_group_bundles"] == [{"CPU": 1, "GPU": 2, "accelerator_type:A10G": 0.001}]
    assert (options["ray_actor_options"]["num_cpus"], options["ray_actor_options"]["num_gpus"]) == (1, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"placement_group_config": {"bundles": [{"GPU": 1}], "strategy": "SPREAD"}}, "SPREAD spreads"),
        ({"llm_engine": "SGLang"}, "SGLang is no engine here"),
        ({"lora_config": {}}, "lora_config"),
        ({"model_loading_config": {"model_source": "x"}}, "model_id"),
        ({"deployment_config": {"num_replica": 2}}, "num_replica: Ray's deployments have no such option"),
        ({"engine": "fake", "model_loading_config": {"model_id": "m", "tokenizer_source": "t"}}, "only vLLM"),
    ],
)
def test_what_has_no_meaning_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        llm(**changes)


def test_a_configuration_may_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "qwen.yaml"
    file.write_text(yaml.safe_dump(QWEN))
    assert plans.of_llm_configs({"llm_configs": [str(file)]}) == llm()
    with pytest.raises(InvalidRequest, match=r"llm_configs\[0\]: .* cannot be read"):
        plans.of_llm_configs({"llm_configs": [str(tmp_path / "none.yaml")]})


def test_two_models_of_one_id_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="another model's id"):
        plans.of_llm_configs({"llm_configs": [QWEN, QWEN]})


def test_settings_are_those_of_a_file_and_secrets_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUE_PASSWORD", "s3cret")
    plan = plans.of_app({"settings": {"jobs": "redis://:${QUEUE_PASSWORD}@h:1/0"}})
    assert "s3cret" not in str(plan)
    assert plans.to_settings(plan.settings).jobs == "redis://:s3cret@h:1/0"
    with pytest.raises(InvalidRequest, match="request_timeout_s"):
        plans.to_settings({"request_timeout_s": "long"})


def test_what_a_program_says_of_several_models_at_once_is_said_of_each() -> None:
    options = {"context_length": 77}
    models = [{"name": name, "engine": "fake", "options": options} for name in ("a", "b")]
    assert [model.options for model in plans.to_settings({"models": models}).models] == [options, options]


@pytest.mark.parametrize(("name", "value"), [("ui", True), ("workers", 4), ("tls", {"certificate": "c", "key": "k"})])
def test_what_is_for_one_server_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"settings.{name} is for a server of its own"):
        plans.of_app({"settings": {name: value}})


def test_options_of_a_model_that_is_not_there_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"deployments.peak: there is no such model. Models: peek"):
        plans.of_app({"deployments": {"peak": {}}})


def test_the_ingress_admits_for_all_replicas_and_wakes_nobody() -> None:
    plan = plans.of_app(
        {
            "settings": {"models": [{"name": "a", "max_concurrent": 4}, {"name": "b", "max_concurrent": 4}]},
            "deployments": {
                "a": {"autoscaling_config": {"min_replicas": 0, "max_replicas": 3}},
                "b": {"num_replicas": 2},
            },
        }
    )
    settings = plans.to_settings(plan.settings)
    a, b = plans.ingress_settings(plan, settings).models
    assert (a.max_concurrent, a.load) == (12, "demand")
    assert (b.max_concurrent, b.load) == (8, "start")
    assert "ByOutstandingTokens" in str(plans.model_options(plan, settings, "a")["autoscaling_config"])
    assert plans.model_options(plan, settings, "b")["max_ongoing_requests"] > 4


def test_an_ingress_is_replaced_when_the_new_one_answers() -> None:
    plan = plans.of_app({"ingress": {"num_replicas": 2, "ray_actor_options": {"resources": {"edge": 1}}}})
    options = plans.ingress_options(plan, plans.to_settings(plan.settings))
    assert options["max_surge_percent"] == 100
    assert options["num_replicas"] == 2
    actor = options["ray_actor_options"]
    assert (actor["num_cpus"], actor["resources"]) == (0.5, {"edge": 1})


def test_an_ingress_that_has_a_machine_to_itself_does_not_wait_there_for_its_successor() -> None:
    plan = plans.of_app({"ingress": {"num_replicas": 2, "max_replicas_per_node": 1}})
    assert "max_surge_percent" not in plans.ingress_options(plan, plans.to_settings(plan.settings))


def test_the_ingress_feels_that_a_client_has_stopped_reading() -> None:
    own = {"ray_actor_options": {"runtime_env": {"pip": ["a"], "env_vars": {"HF_HUB_OFFLINE": "1"}}}}
    plan = plans.of_app({"ingress": own})
    environment = plans.ingress_options(plan, plans.to_settings(plan.settings))["ray_actor_options"]["runtime_env"]
    assert environment == {
        "pip": ["a"],
        "env_vars": {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0", "HF_HUB_OFFLINE": "1"},
    }


def test_a_router_of_the_operators_own_is_told_of_no_answer() -> None:
    other = {"request_router_config": {"request_router_class": "their.router:Theirs"}}
    plan = plans.of_app({"deployments": {"peek": other}})
    assert not plans.is_ours_to_route(plan, "peek")
    assert plans.is_ours_to_route(plans.of_app({}), "peek")


def scaling(plan: plans.Plan, name: str) -> Any:
    return plans.model_options(plan, plans.to_settings(plan.settings), name)["autoscaling_config"]


def test_how_much_a_replica_is_to_have_is_told_to_the_policy_in_both_kinds_of_file() -> None:
    own = {"min_replicas": 1, "max_replicas": 4, "target_outstanding_tokens": 9000}
    asked = {
        "policy_function": "sightline.cluster.scaling:ByOutstandingTokens",
        "policy_kwargs": {"tokens_per_replica": 9000},
    }
    wanted = {"min_replicas": 1, "max_replicas": 4, "policy": asked}
    assert scaling(plans.of_app({"deployments": {"peek": {"autoscaling_config": own}}}), "peek") == wanted
    assert scaling(llm(deployment_config={"autoscaling_config": own}), "qwen-vl") == wanted


def test_as_many_replicas_as_ray_likes_are_counted_by_tokens_too() -> None:
    plan = plans.of_app({"deployments": {"peek": {"num_replicas": "auto"}}})
    assert "ByOutstandingTokens" in str(scaling(plan, "peek"))
    (model,) = plans.ingress_settings(plan, plans.to_settings(plan.settings)).models
    assert model.max_concurrent == 100 * plans.to_settings(plan.settings).models[0].max_concurrent


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_replicas": "many"}, "from 'many' to 'many' replicas"),
        ({"num_replicas": 0}, "from 0 to 0 replicas"),
        ({"num_replicas": True}, "from True"),
        ({"autoscaling_config": {"min_replicas": 3, "max_replicas": 2}}, "from 3 to 2 replicas"),
        ({"autoscaling_config": {"min_replicas": "1"}}, "from '1'"),
        ({"autoscaling_config": 4}, "autoscaling_config holds Ray's options"),
        ({"num_replicas": 2, "autoscaling_config": {"max_replicas": 2}}, "give one"),
        ({"autoscaling_config": {"max_replicas": 2, "target_outstanding_tokens": 0}}, "a number of tokens from 1 on"),
        (
            {"autoscaling_config": {"max_replicas": 2, "target_outstanding_tokens": 9, "target_ongoing_requests": 2}},
            "may stand beside it",
        ),
    ],
)
def test_replicas_that_there_cannot_be_are_refused_before_anything_is_deployed(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        plans.of_app({"deployments": {"peek": options}})
    assert "deployments.peek" in caught.value.message
    with pytest.raises(InvalidRequest, match=words):
        plans.of_app({"ingress": options})
