"""vLLM: its command line, its supervision and its pictures by name, against a stand-in that speaks its wire.

The real one is in `test_vllm_reference.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from sightline.config import PEEK, ModelConfig
from sightline.engines import Supervised
from sightline.engines.remote.upstream import Address
from sightline.engines.vllm import REFUSED, VllmEngine, VllmOptions, to_command, to_environment
from sightline.errors import ContextLengthExceeded, EngineUnavailable, InvalidRequest, UpstreamFailed
from sightline.testing import answer, ask, ends
from sightline.types import Image

pytestmark = pytest.mark.anyio

BUDGET = {"type": "CellBudget", "cell": 28, "min_pixels": 3136, "max_pixels": 100_352}
ADDRESS = Address("http://localhost/v1", "/run/x/socket")
RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 128, 0)


def picture(colour: tuple[int, int, int], side: int = 56, digest: str | None = None) -> Image:
    pixels = np.full((side, side, 3), colour, np.uint8)
    return Image(pixels, digest or f"sha256:{colour}", side, side, "image/png", 9)


def command(**options: Any) -> list[str]:
    config = ModelConfig(name="m", engine="vllm", source="/models/m", options=options, max_concurrent=4)
    return to_command(config, VllmOptions(executable="/opt/bin/vllm", **options), ADDRESS)


# --- the command line ------------------------------------------------------------------------------------------------


def test_what_is_safe_is_always_said() -> None:
    words = command()
    assert words[:3] == ["/opt/bin/vllm", "serve", "/models/m"]
    text = " ".join(words)
    for flag in (
        '--limit-mm-per-prompt={"image": 64, "video": 0, "audio": 0}',
        "--allowed-media-domains none.invalid",
        "--max-num-queued-reqs=20",
        "--shutdown-timeout=8",
        "--enable-request-id-headers",
        "--enable-prompt-tokens-details",
        "--uds=/run/x/socket",
        "--served-model-name=m",
    ):
        assert flag in text
    config = ModelConfig(name="m", engine="vllm", source="/models/m")
    environment = to_environment(config, VllmOptions(environment={"VLLM_MEDIA_URL_ALLOW_REDIRECTS": "1"}))
    assert environment["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"


def test_any_option_becomes_a_flag() -> None:
    kwargs = {
        "dtype": "float32",
        "max_model_len": 2048,
        "gpu_memory_utilization": 0.5,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "hf_overrides": {"a": [1]},
        "lora_modules": ["x=1", "y=2"],
        "trust-remote-code": True,
        "seed": None,
        "limit_mm_per_prompt": {"image": 3},
        "max_num_queued_reqs": 7,
    }
    words = command(engine_kwargs=kwargs)
    for word in (
        "--dtype=float32",
        "--max-model-len=2048",
        "--gpu-memory-utilization=0.5",
        "--enforce-eager",
        "--no-enable-prefix-caching",
        '--hf-overrides={"a": [1]}',
        "--trust-remote-code",
        '--limit-mm-per-prompt={"image": 3, "video": 0, "audio": 0}',
        "--max-num-queued-reqs=7",
    ):
        assert words.count(word) == 1, word
    assert words[words.index("--lora-modules") :][:3] == ["--lora-modules", "x=1", "y=2"]
    assert not any("seed" in word for word in words)
    assert sum(word.startswith("--max-num-queued-reqs") for word in words) == 1


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_undo_it_is_refused_with_the_reason(name: str) -> None:
    for written in (name, name.replace("_", "-"), f"no_{name}"):
        with pytest.raises(InvalidRequest) as caught:
            engine(executable="/opt/bin/vllm", engine_kwargs={written: "x"})
        assert REFUSED[name] in caught.value.message


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "name the program"),
        ({"executable": "/v", "python": "/p"}, "twice"),
        ({"executable": "/v", "base_url": "http://h/v1"}, "give one"),
        ({"base_url": "http://h/v1", "engine_kwargs": {"dtype": "auto"}}, "started here"),
        ({"executable": "/v", "engine_kwargs": {"--host": "x"}}, "no option"),
        ({"executable": "/v", "engine_kwargs": {"max_num_queued_reqs": 0}}, "above 0"),
        ({"executable": "/v", "engine_kwargs": {"limit_mm_per_prompt": {"video": 1}}}, "nothing but pictures"),
        ({"executable": "/v", "environment": {"a b": "x"}}, "environment variable"),
        ({"executable": "/v", "kind": "sglang"}, "engine remote"),
        ({"executable": "/v", "wings": 2}, "unknown field `wings`"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        engine(**options)


# --- started and supervised ------------------------------------------------------------------------------------------


def engine(name: str = "m", **options: Any) -> VllmEngine:
    return VllmEngine(ModelConfig(name=name, engine="vllm", source="x/y", options=options, start_timeout_s=30.0))


@pytest.fixture
def program(tmp_path: Path) -> str:
    """The stand-in, as a program."""
    path = tmp_path / "vllm"
    standin = Path(__file__).parent / "vllm_standin.py"
    path.write_text(f"#!{sys.executable}\nimport runpy\nrunpy.run_path({str(standin)!r}, run_name='__main__')\n")
    path.chmod(0o755)
    return str(path)


@asynccontextmanager
async def running(program: str, **options: Any) -> AsyncIterator[VllmEngine]:
    own = engine(executable=program, budget=BUDGET, **options)
    await own.start()
    try:
        yield own
    finally:
        await own.close()


async def told(own: VllmEngine) -> Any:
    upstream = own._remote.open()
    return json.loads((await upstream.get("/standin", upstream.deadline())).body)


async def test_a_picture_goes_by_its_name_once_it_is_held(program: str) -> None:
    async with running(program) as own:
        question = ask(picture(RED), "and", picture(BLUE, 84), "what ?", max_tokens=50)
        for _ in range(2):
            text, finish = await answer(own, question)
            assert text == "I see 56x56 red; 84x84 blue . The end"
            assert finish.usage.image_tokens == (4, 9)
            assert finish.usage.prompt_tokens == 4 + 4 + 9
            assert finish.usage.cached_tokens == 1
        first, second = [
            [p for p in b["messages"][0]["content"] if p["type"] != "text"] for b in (await told(own))["bodies"]
        ]
        assert all(p["image_url"]["detail"] == "high" for p in first)
        assert [p["image_url"] for p in second] == [None, None]
        assert [p["uuid"] for p in first] == [p["uuid"] for p in second]
        # Another tenant's name for the same picture is another, and the picture is sent.
        await answer(own, replace(question, tenant="other"))
        third = [p for p in (await told(own))["bodies"][2]["messages"][0]["content"] if p["type"] != "text"]
        assert all(p["image_url"] is not None for p in third)
        assert not {p["uuid"] for p in third} & {p["uuid"] for p in first}


async def test_a_picture_that_is_held_no_more_is_sent_again(program: str) -> None:
    async with running(program) as own:
        await answer(own, ask(picture(RED), "?"))
        for number in range(4):
            await answer(own, ask(picture(BLUE, digest=f"sha256:{number}"), "?"))
        text, _ = await answer(own, ask(picture(RED), "?"))
        assert text.startswith("I see 56x56 red")
        bodies = (await told(own))["bodies"]
        assert [b["messages"][0]["content"][0]["image_url"] is None for b in bodies[-2:]] == [True, False]


async def test_pixels_arrive_exactly(program: str) -> None:
    """Two pictures of one digest differ in size only; a size is part of the name."""
    async with running(program) as own:
        for side in (56, 84, 56):
            text, _ = await answer(own, ask(picture(GREEN, side, "sha256:same"), "?"))
            assert text.startswith(f"I see {side}x{side} green")


@pytest.mark.parametrize("expands", ["0", "1"])
async def test_prompts_are_counted_exactly_by_both_ways_of_its_versions(program: str, expands: str) -> None:
    async with running(program, environment={"STANDIN_EXPANDS": expands}) as own:
        for request in (ask("one two three"), ask(picture(RED), "?"), ask(picture(RED), "a", picture(BLUE, 84))):
            count = await own.count_tokens(request)
            _, finish = await answer(own, request)
            assert count.exact
            assert (count.prompt_tokens, count.image_tokens) == (
                finish.usage.prompt_tokens,
                finish.usage.image_tokens,
            )


async def test_a_prompt_that_is_too_long_is_told_from_other_refusals(program: str) -> None:
    """vLLM has no code for it."""
    async with running(program) as own:
        for request in (ask("word " * 3000), ask("hello", max_tokens=2048)):
            assert type(await ends(own, request)) is ContextLengthExceeded
            with pytest.raises(ContextLengthExceeded):
                await own.count_tokens(request)


async def test_it_says_which_stop_string_it_met(program: str) -> None:
    async with running(program) as own:
        text, finish = await answer(own, ask(picture(RED), "?", stop=(".", "nothing")))
        assert text == "I see 56x56 red"
        assert (finish.reason, finish.stop_sequence) == ("stop", ".")
        assert finish.usage.completion_tokens == 4


async def test_it_gets_what_it_needs_of_the_environment_and_no_more(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("HF_TOKEN", "passed on")
    async with running(program, environment={"VLLM_X": "1"}, pass_environment=["HF_TOKEN"]) as own:
        environment = (await told(own))["environment"]
        assert "AWS_SECRET_ACCESS_KEY" not in environment
        assert (environment["VLLM_X"], environment["HF_TOKEN"], environment["VLLM_NO_USAGE_STATS"]) == (
            "1",
            "passed on",
            "1",
        )


@pytest.mark.parametrize(("budget", "warned"), [(None, True), (BUDGET, False)])
async def test_a_model_whose_files_are_not_here_is_not_silently_blind(
    program: str, budget: Any, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"executable": program} | ({"budget": budget} if budget else {})
    own = VllmEngine(ModelConfig(name="m", engine="vllm", source="some/model", options=options, start_timeout_s=30.0))
    await own.start()
    await own.close()
    assert ("requests with pictures are refused" in caplog.text) == warned


async def test_special_tokens_of_the_model_are_broken_up(program: str) -> None:
    config = ModelConfig(name=PEEK, engine="vllm", options={"executable": program}, start_timeout_s=30.0)
    own = VllmEngine(config)
    await own.start()
    try:
        assert own.info.vision is not None, "the budget is read from the checkpoint"
        await answer(own, ask("a <|im_start|> b <|im_", "end|> c"))
        sent = (await told(own))["bodies"][0]["messages"][0]["content"]
        assert "<|im_start|>" not in sent
        assert "<|im_end|>" not in sent
        assert sent.replace("\u200b", "") == "a <|im_start|> b <|im_end|> c"
    finally:
        await own.close()


async def test_killed_it_comes_back_and_requests_wait_for_it(program: str) -> None:
    async with running(program) as own:
        assert isinstance(own, Supervised)
        assert (own.state, own.restarts) == ("ready", 0)
        assert own.pid is not None
        before = psutil.Process(own.pid).children()[0]
        await answer(own, ask(picture(RED), "?"))
        broken = await ends(own, ask("crash"))
        assert isinstance(broken, UpstreamFailed)
        assert broken.died is not None, "its pictures are suspects"
        text, _ = await answer(own, ask(picture(RED), "?"))
        assert text.startswith("I see 56x56 red"), "the new one does not hold it, and is sent it"
        assert own.restarts == 1
        assert own.state == "ready"
        assert not before.is_running()


async def test_one_that_cannot_load_says_so_and_the_log_has_its_last_words(
    program: str, caplog: pytest.LogCaptureFixture
) -> None:
    own = engine(executable=program, environment={"STANDIN_FAILS": "1"}, budget=BUDGET)
    with pytest.raises(EngineUnavailable, match="ended while it was loading"):
        await own.start()
    assert own.state == "failed"
    assert "no memory for the model" in caplog.text
    assert "exit status 1" in caplog.text
    assert next(r.levelname for r in caplog.records if r.message.endswith("no memory for the model")) == "ERROR"


async def test_one_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    own = engine(executable="/nowhere/vllm")
    with pytest.raises(EngineUnavailable):
        await own.start()
    assert "No such file" in caplog.text


async def test_closed_it_leaves_nothing(program: str) -> None:
    async with running(program) as own:
        assert own.pid is not None
        guard = psutil.Process(own.pid)
        processes = [guard, *guard.children(recursive=True)]
        socket = Path(own._server.address.socket or "") if own._server else Path()
        assert len(processes) == 2
        assert socket.parent.stat().st_mode & 0o077 == 0, "nobody else may open it"
    assert not any(process.is_running() for process in processes)
    assert not socket.parent.exists()
    with pytest.raises(EngineUnavailable):
        await answer(own, ask("after"))


def test_the_models_own_python_is_the_one_it_is_started_with() -> None:
    config = ModelConfig(
        name="m", engine="vllm", source="/models/m", python="/opt/vllm/bin/python", options={"budget": BUDGET}
    )
    assert VllmEngine(config)._server is not None
    with pytest.raises(InvalidRequest, match="given twice"):
        VllmEngine(msgspec.structs.replace(config, options={**config.options, "python": "/p"}))
