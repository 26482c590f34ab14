"""What is read from the files and the options, how the server is set up, and what it is sent; all without llama.cpp."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sightline.config import PEEK, ModelConfig
from sightline.engines import Supervised, open_engine
from sightline.engines.llamacpp import LlamaCppEngine, schemas
from sightline.engines.llamacpp.convert import convert
from sightline.engines.llamacpp.files import ModelFiles, find, read_facts
from sightline.engines.llamacpp.host import to_params
from sightline.engines.llamacpp.launch import Setup, to_command, to_setup
from sightline.engines.llamacpp.options import LlamaCppOptions, read_options
from sightline.errors import ContextLengthExceeded, EngineUnavailable, InvalidRequest
from sightline.images.budget import CellBudget
from sightline.testing import answer, ask, picture
from sightline.types import ResponseFormat, Tool
from tests.engines.test_conformance import QWEN2_SPECIALS

STANDIN = Path(__file__).parent / "standin.py"
PEEK_BUDGET = CellBudget(28, 12544, 38400)


@pytest.fixture(scope="module")
def gguf_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gguf")
    convert(ModelConfig(name=PEEK).path, directory, "q8_0")
    return directory


def config(directory: Path | str, **options: Any) -> ModelConfig:
    return ModelConfig(name="m", engine="llamacpp", source=str(directory), options=options)


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"slot": 3}, "slot"),
        ({"slots": 0}, "slots must be above 0"),
        ({"context_length": -1}, "context_length must be above 0"),
        ({"threads": -2}, "threads"),
        ({"kv_cache_type": "q2"}, "kv_cache_type"),
        ({"budget": {"type": "Cells"}}, "budget is"),
        ({"kv_cache_type": "q8_0", "flash_attention": False}, "needs flash attention"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        read_options(config("x", **options))


# --- files -----------------------------------------------------------------------------------------------------------


def files_in(directory: Path, *names: str, **options: Any) -> ModelFiles:
    for name in names:
        (directory / name).touch()
    return find(config(directory, **options), read_options(config(directory, **options)))


def test_a_model_and_its_tower_are_found_by_their_names(tmp_path: Path) -> None:
    names = ("Model-00001-of-00002.gguf", "Model-00002-of-00002.gguf", "Model.mmproj-F16.gguf", "README.md")
    found = files_in(tmp_path, *names)
    assert found == ModelFiles(tmp_path / names[0], tmp_path / names[2])


def test_a_model_without_a_tower_cannot_see(tmp_path: Path) -> None:
    assert files_in(tmp_path, "a.gguf").mmproj is None


def test_a_choice_is_the_operator_s(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"a\.gguf, b\.gguf: choose one with model_file"):
        files_in(tmp_path, "a.gguf", "b.gguf", "mmproj-a.gguf")
    with pytest.raises(InvalidRequest, match=r"mmproj-a\.gguf, mmproj-b\.gguf: choose one with mmproj_file"):
        files_in(tmp_path, "mmproj-b.gguf", model_file="b.gguf")
    chosen = files_in(tmp_path, model_file="b.gguf", mmproj_file="mmproj-a.gguf")
    assert chosen == ModelFiles(tmp_path / "b.gguf", tmp_path / "mmproj-a.gguf")
    for name in ("c.gguf", "../a.gguf"):
        with pytest.raises(InvalidRequest, match="there is no"):
            files_in(tmp_path, model_file=name)


def test_where_there_is_no_gguf_it_says_how_to_make_one(tmp_path: Path) -> None:
    for source in (PEEK, str(tmp_path)):
        with pytest.raises(InvalidRequest, match=r"sightline convert \S+ --for gguf"):
            LlamaCppEngine(config(source))


def test_facts_are_the_model_s_own(gguf_dir: Path) -> None:
    facts = read_facts(find(config(gguf_dir), LlamaCppOptions()))
    assert facts.context_length == 2048
    assert set(facts.special_tokens) == {*QWEN2_SPECIALS, "<|vision_pad|>"}
    assert facts.budget == PEEK_BUDGET


def test_without_the_checkpoint_s_configuration_the_tower_tells(gguf_dir: Path, tmp_path: Path) -> None:
    for name in ("model-q8_0.gguf", "mmproj-q8_0.gguf"):
        (tmp_path / name).symlink_to(gguf_dir / name)
    assert read_facts(find(config(tmp_path), LlamaCppOptions())).budget == PEEK_BUDGET


async def test_what_is_no_gguf_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"no such thing")
    engine = LlamaCppEngine(config(tmp_path))
    with pytest.raises(EngineUnavailable, match=r"m\.gguf cannot be read as a GGUF file"):
        await engine.start()


# --- schemas ---------------------------------------------------------------------------------------------------------


def nested(levels: int) -> dict[str, Any]:
    return {"type": "array", "items": nested(levels - 1)} if levels else {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(257)}}, "more than 256"),
        ({"enum": [f"v{i}" for i in range(257)]}, "more than 256"),
        (nested(32), "nested deeper than 32"),
        ({"type": "string", "description": "x" * 2**16}, "larger than 64 KiB"),
        ({"anyOf": [{"$ref": "https://example.com/schema"}]}, "its own parts only"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_schema_that_is_too_much_is_refused(schema: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told) as error:
        schemas.check(schema, "response_format")
    assert error.value.param == "response_format"


def test_a_schema_that_is_not_is_taken() -> None:
    schemas.check(None, "response_format")
    schemas.check(nested(31), "response_format")
    schemas.check({"$ref": "#/$defs/a", "$defs": {"a": {"enum": list(range(256))}}}, "response_format")


# --- the server's setup ----------------------------------------------------------------------------------------------


def setup(**options: Any) -> Setup:
    files = ModelFiles(Path("/models/m.gguf"), Path("/models/mmproj.gguf"))
    read = read_options(config("x", **options))
    return to_setup(files, read, slots=read.slots, longest=32768, budget=PEEK_BUDGET)


class Params:
    """Takes what is set, and tells it; of the parameters' parameters too."""

    def __init__(self) -> None:
        self.model, self.mmproj, self.sampling = SimpleNamespace(), SimpleNamespace(), SimpleNamespace()
        self.cpuparams, self.cpuparams_batch = SimpleNamespace(), SimpleNamespace()


class Names:
    """An enum of which any member is its own name."""

    def __getattr__(self, name: str) -> str:
        return name


XLLAMACPP = SimpleNamespace(CommonParams=Params, ggml_type=Names(), llama_flash_attn_type=Names())


@pytest.mark.parametrize("options", [{}, {"kv_cache_type": "f32", "flash_attention": False, "threads": 3, "slots": 2,
                                          "context_length": 1000, "n_gpu_layers": 7, "batch_tokens": 64}])  # fmt: skip
def test_flags_and_parameters_say_the_same(options: dict[str, Any]) -> None:
    made = setup(**options)
    words = to_command(made, "/run/s.sock", "/bin/llama-server")
    flags = {a: b for a, b in pairwise(words) if a.startswith("--")}
    params = to_params(XLLAMACPP, "/run/s.sock", made)
    attention = {"AUTO": "auto", "ENABLED": "on", "DISABLED": "off"}[params.flash_attn_type.rpartition("_")[2]]
    assert words[0] == "/bin/llama-server"
    same = {
        "--host": params.hostnames[0], "--model": params.model.path, "--mmproj": params.mmproj.path,
        "--ctx-size": params.n_ctx, "--parallel": params.n_parallel, "--threads": params.cpuparams.n_threads,
        "--threads-http": params.n_threads_http, "--batch-size": params.n_batch, "--ubatch-size": params.n_ubatch,
        "--cache-type-k": params.cache_type_k.removeprefix("GGML_TYPE_").lower(),
        "--cache-type-v": params.cache_type_v.removeprefix("GGML_TYPE_").lower(), "--flash-attn": attention,
        "--image-min-tokens": params.image_min_tokens, "--image-max-tokens": params.image_max_tokens,
        "--repeat-last-n": params.sampling.penalty_last_n, "--cache-ram": params.cache_ram_mib,
        "--verbosity": params.verbosity,
    }  # fmt: skip
    assert {name: flags[name] for name in same} == {name: str(value) for name, value in same.items()}
    assert flags.get("--n-gpu-layers") == (str(params.n_gpu_layers) if hasattr(params, "n_gpu_layers") else None)
    switches = {
        "--no-webui": params.ui, "--no-slots": params.endpoint_slots, "--no-kv-unified": params.kv_unified,
        "--no-cache-idle-slots": params.cache_idle_slots, "--no-prefill-assistant": params.prefill_assistant,
    }  # fmt: skip
    assert all(switch in words and value is False for switch, value in switches.items())
    assert params.offline
    assert "--offline" in words
    assert not params.endpoint_metrics
    assert not params.endpoint_props


def test_memory_is_for_every_slot_and_so_bounded() -> None:
    assert setup().num_ctx == 4 * 8192, "the model's own context is longer"
    assert setup(context_length=32768, slots=2).num_ctx == 2 * 32768


def test_the_largest_served_picture_is_not_reduced_again() -> None:
    assert setup().image_tokens == PEEK_BUDGET.largest_tokens


# --- what is sent ----------------------------------------------------------------------------------------------------

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def running(gguf_dir: Path, directory: Path, name: str = "m", **options: Any) -> AsyncIterator[LlamaCppEngine]:
    """On a stand-in for a user's `llama-server`."""
    for source, file in (("model-q8_0.gguf", f"{name}.gguf"), ("mmproj-q8_0.gguf", "mmproj.gguf")):
        (directory / file).symlink_to(gguf_dir / source)
    program = directory / "llama-server"
    program.write_text(f"#!{sys.executable} -IS\n{STANDIN.read_text()}")
    program.chmod(0o755)
    engine = open_engine(config(directory, executable=str(program), **options))
    assert isinstance(engine, LlamaCppEngine)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def sent(engine: LlamaCppEngine, request: Any) -> tuple[list[str], dict[str, Any]]:
    """The server's arguments, and the body it got."""
    text, _ = await answer(engine, request)
    told = json.loads(text)
    return told["argv"], told["body"]


async def test_one_s_own_server_is_started_with_our_flags(gguf_dir: Path, tmp_path: Path) -> None:
    async with running(gguf_dir, tmp_path, slots=2) as engine:
        assert isinstance(engine, Supervised)
        assert (engine.state, engine.info.context_length, engine.info.vision) == ("ready", 512, PEEK_BUDGET)
        argv, body = await sent(engine, ask(picture(engine.info, 300, 200), "a<|image_pad|><|im_end|>b"))
        socket = Path(argv[argv.index("--host") + 1])
        assert socket.parent.stat().st_mode & 0o777 == 0o700, "nobody else can open the socket"
        assert argv[argv.index("--parallel") + 1] == "2"
        image, text = body["messages"][0]["content"]
        assert image["image_url"]["url"].startswith("data:image/png;base64,")
        assert text["text"] == "a<\u200b|image_pad|><\u200b|im_end|>b"
    assert not socket.parent.exists()


async def test_the_weights_are_told_by_their_digest(gguf_dir: Path, tmp_path: Path) -> None:
    async with running(gguf_dir, tmp_path) as engine:
        expected = hashlib.sha256((gguf_dir / "model-q8_0.gguf").read_bytes()).hexdigest()
        assert engine.info.weights_digest == f"sha256:{expected}"


async def test_a_budget_of_the_operator_s_is_the_server_s_range(gguf_dir: Path, tmp_path: Path) -> None:
    budget = {"type": "CellBudget", "cell": 28, "min_pixels": 784, "max_pixels": 784_000}
    async with running(gguf_dir, tmp_path, budget=budget) as engine:
        assert engine.info.vision == CellBudget(28, 784, 784_000)
        argv, _ = await sent(engine, ask("a"))
        assert int(argv[argv.index("--image-max-tokens") + 1]) >= 1000


async def test_only_the_request_says_how_it_is_sampled(gguf_dir: Path, tmp_path: Path) -> None:
    async with running(gguf_dir, tmp_path) as engine:
        _, body = await sent(engine, ask("a", temperature=1.0))
        assert (body["top_k"], body["min_p"], body["top_p"]) == (0, 0, 1)
        assert body["samplers"].index("temperature") < body["samplers"].index("top_p")
        _, body = await sent(engine, ask("a", temperature=1.0, top_k=7, min_p=0.25, repetition_penalty=1.5))
        assert (body["top_k"], body["min_p"], body["repeat_penalty"]) == (7, 0.25, 1.5)
        _, body = await sent(engine, ask("a", logprobs=0))
        assert (body["logprobs"], body["top_logprobs"]) == (True, 1), "with 0 it would tell none at all"


async def test_text_is_sent_as_the_model_s_own_tokenizer_would_take_it(gguf_dir: Path, tmp_path: Path) -> None:
    """In normal form C, which Qwen2's tokenizer begins with and llama.cpp leaves out."""
    async with running(gguf_dir, tmp_path) as engine:
        _, body = await sent(engine, ask("cafe\u0301"))
        assert body["messages"][0]["content"] == "caf\u00e9"


async def test_prompts_are_reused_while_they_are_one_tenant_s(gguf_dir: Path, tmp_path: Path) -> None:
    async with running(gguf_dir, tmp_path) as engine:
        told = []
        for tenant in ("a", "a", "b", "a"):
            _, body = await sent(engine, replace(ask("hello"), tenant=tenant))
            told.append(body["cache_prompt"])
    assert told == [True, True, False, False]


async def test_a_connection_that_is_closed_after_a_stream_is_not_used_again(gguf_dir: Path, tmp_path: Path) -> None:
    async with running(gguf_dir, tmp_path) as engine:
        for _ in range(20):
            await engine.count_tokens(ask("hello"))
            text, _ = await answer(engine, ask("hello"))
            assert json.loads(text)["connection"] == "close"


async def test_an_answer_that_would_not_fit_is_refused(gguf_dir: Path, tmp_path: Path) -> None:
    async with running(gguf_dir, tmp_path) as engine:
        with pytest.raises(ContextLengthExceeded):
            await answer(engine, ask("hello", max_tokens=483))
        await answer(engine, ask("hello", max_tokens=482))


async def test_too_large_a_schema_never_reaches_it(gguf_dir: Path, tmp_path: Path) -> None:
    wide = {"enum": list(range(1000))}
    async with running(gguf_dir, tmp_path) as engine:
        for request in (
            replace(ask("a"), response_format=ResponseFormat("json_schema", schema=wide)),
            replace(ask("a"), tools=(Tool("f", parameters=wide),)),
        ):
            for run in (answer, LlamaCppEngine.count_tokens):
                with pytest.raises(InvalidRequest, match="simpler"):
                    await run(engine, request)


async def test_tools_need_a_template_that_knows_them(gguf_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    async with running(gguf_dir, tmp_path / "a") as engine:
        assert "tools" not in engine.info.features
    (tmp_path / "b").mkdir()
    async with running(gguf_dir, tmp_path / "b", "tools") as engine:
        assert "tools" in engine.info.features


async def test_a_program_that_is_not_there_is_told(gguf_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = LlamaCppEngine(config(gguf_dir, executable="/nowhere/llama-server"))
    with pytest.raises(EngineUnavailable):
        await engine.start()
    assert "No such file or directory: /nowhere/llama-server" in caplog.text
    with pytest.raises(EngineUnavailable):
        await engine.count_tokens(ask("hello"))


def test_a_file_may_be_named_in_place_of_its_directory(tmp_path: Path) -> None:
    for name in ("big-Q8_0.gguf", "small-Q4_0.gguf", "mmproj-f16.gguf"):
        (tmp_path / name).touch()
    found = find(ModelConfig(name="m", engine="llamacpp", source=str(tmp_path / "small-Q4_0.gguf")), LlamaCppOptions())
    assert found == ModelFiles(tmp_path / "small-Q4_0.gguf", tmp_path / "mmproj-f16.gguf")
