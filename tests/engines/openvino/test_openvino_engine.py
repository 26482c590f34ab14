"""The engine as a whole, in this process, on a tiny random model."""

from __future__ import annotations

import asyncio
import hashlib
import random
import shutil
import threading
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.config import ModelConfig
from sightline.engines.chat import PromptTokenizer
from sightline.engines.openvino import OpenVINOEngine
from sightline.engines.openvino.loop import Generation, StepLoop
from sightline.engines.openvino.runner import LanguageRunner
from sightline.engines.openvino.vision import VisionEncoder
from sightline.engines.sampler import distribution, uniform_at
from sightline.errors import ContextLengthExceeded, EngineFailed, EngineUnavailable, InvalidRequest
from sightline.types import EngineRequest, Finish, Image, Message, SamplingParams, Text, TextDelta, TokenLogprob
from tests.engines.openvino.tiny import CONTEXT, VOCABULARY, tokenizer

pytestmark = pytest.mark.anyio


def picture(seed: int, rows: int = 3, columns: int = 6) -> Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (28 * rows, 28 * columns, 3), dtype=np.uint8)
    return Image(pixels, f"sha256:{seed}", 28 * columns, 28 * rows, "image/png", 1000)


def ask(*content: str | Image, tenant: str = "", priority: int = 0, **sampling: Any) -> EngineRequest:
    parts = tuple(Text(part) if isinstance(part, str) else part for part in content)
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 16, "ignore_eos": True, **sampling})
    return EngineRequest("r", "tiny", (Message[Image]("user", parts),), params, tenant=tenant, priority=priority)


async def answer(engine: OpenVINOEngine, request: EngineRequest) -> tuple[str, Finish]:
    text = ""
    async for event in engine.generate(request):
        if isinstance(event, Finish):
            return text, event
        assert isinstance(event, TextDelta)
        text += event.text
    raise AssertionError("no Finish")


async def tell(engine: OpenVINOEngine, request: EngineRequest) -> list[TokenLogprob]:
    """Each token of the answer with its log-probability."""
    request = replace(request, sampling=replace(request.sampling, logprobs=0))
    events = [event async for event in engine.generate(request)]
    return [told for event in events if isinstance(event, TextDelta) for told in event.logprobs]


@asynccontextmanager
async def running(model: Path, *, max_concurrent: int = 16, **options: Any) -> AsyncIterator[OpenVINOEngine]:
    engine = OpenVINOEngine(ModelConfig(name="tiny", source=str(model), max_concurrent=max_concurrent, options=options))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


@pytest.fixture
async def engine(tiny_model: Path) -> AsyncIterator[OpenVINOEngine]:
    async with running(tiny_model) as started:
        yield started


def loop_of(engine: OpenVINOEngine) -> StepLoop:
    assert engine._loaded is not None
    return engine._loaded.loop


async def idle(engine: OpenVINOEngine) -> None:
    """Waits until the engine thread has nothing left to do."""
    async with asyncio.timeout(10):
        while not (loop_of(engine)._scheduler.is_idle and loop_of(engine)._inbox.empty()):
            await asyncio.sleep(0.001)


def num_free(engine: OpenVINOEngine) -> int:
    return loop_of(engine)._pool.num_available


MIXED = [
    ask("What is this?"),
    ask(picture(1), "What is this?"),
    ask(picture(1), "and", picture(2, 2, 2), "differ how?"),
    ask("A rather longer question, with words enough to fill more than one block of keys and values. " * 2),
    ask("Before", picture(3, 6, 6), max_tokens=40),
    ask("Write a lot.", max_tokens=100),
]


async def test_the_answer_depends_on_text_and_picture(engine: OpenVINOEngine) -> None:
    """If it did not, the tests below would compare nothing."""
    answers = [(await answer(engine, request))[0] for request in MIXED]
    assert len(set(answers)) == len(MIXED)
    one, other = [(await answer(engine, ask(picture(seed), "What?")))[0] for seed in (1, 2)]
    assert one != other
    first, second = picture(1), picture(2)
    assert (await answer(engine, ask(first, second)))[0] != (await answer(engine, ask(second, first)))[0]


async def test_batched_equals_alone(engine: OpenVINOEngine) -> None:
    alone = [(await answer(engine, replace(request, tenant="a")))[0] for request in MIXED]
    together = await asyncio.gather(*(answer(engine, replace(request, tenant="b")) for request in MIXED))
    assert [text for text, _ in together] == alone


@pytest.mark.parametrize("precision", ["f16", "u8"])
async def test_keys_and_values_may_be_kept_smaller(tiny_model: Path, precision: str) -> None:
    async with running(tiny_model) as whole, running(tiny_model, kv_cache_precision=precision) as smaller:
        expected = await tell(whole, MIXED[2])
        told = await tell(smaller, MIXED[2])
        assert told[0].logprob == pytest.approx(expected[0].logprob, abs=0.5)
        assert [t.logprob for t in told] != [t.logprob for t in expected], "nothing was rounded"


@pytest.mark.parametrize("step_tokens", [1, 7, 33])
async def test_prompts_computed_in_pieces_give_the_same_answers(tiny_model: Path, step_tokens: int) -> None:
    async with running(tiny_model) as whole, running(tiny_model, step_tokens=step_tokens, max_concurrent=4) as pieces:
        expected = [(await answer(whole, request))[0] for request in MIXED]
        together = await asyncio.gather(*(answer(pieces, request) for request in MIXED))
    assert [text for text, _ in together] == expected


async def test_preempted_sequences_give_the_same_answers(tiny_model: Path) -> None:
    """One context's worth of blocks, and eight sequences that together need more."""
    requests = [ask(picture(i), f"Tell me about picture {i}.", max_tokens=120, tenant=str(i)) for i in range(8)]
    async with running(tiny_model, kv_cache_mib=0) as small, running(tiny_model) as ample:
        preemptions = 0
        preempt = loop_of(small)._scheduler._preempt

        def counted(sequence: Any) -> None:
            nonlocal preemptions
            preemptions += 1
            preempt(sequence)

        loop_of(small)._scheduler._preempt = counted  # type: ignore[method-assign]
        expected = [(await answer(ample, request))[0] for request in requests]
        got = await asyncio.gather(*(answer(small, request) for request in requests))
        assert [text for text, _ in got] == expected
        assert preemptions > 0, "nothing ran out: this proves nothing"
        assert num_free(small) == loop_of(small)._pool.num_blocks


@pytest.mark.parametrize(("name", "count"), [("tiny", 200), ("peek", 50)])
async def test_seeded_answers_do_not_depend_on_company(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    """Seeded requests alone and among 15 others: equal, but for where the drawn number lies at a border."""
    rows: dict[str, list[np.ndarray[Any, Any]]] = defaultdict(list)
    extend = StepLoop._extend

    def recording(self: StepLoop, sequence: Any, logits: np.ndarray[Any, Any]) -> None:
        rows[self._live[sequence].request.request_id].append(logits.copy())
        extend(self, sequence, logits)

    monkeypatch.setattr(StepLoop, "_extend", recording)
    requests = [
        ask(picture(i % 5), f"Question {i}?", temperature=1.5, top_p=(1.0, 0.9)[i % 2], seed=i, max_tokens=12)
        for i in range(count)
    ]
    async with running(tiny_model if name == "tiny" else ModelConfig(name=name).path) as engine:

        async def run(request: EngineRequest, company: str) -> list[tuple[int, ...]]:
            told = await tell(engine, replace(request, request_id=f"{company}{request.sampling.seed}", tenant=company))
            return [token.bytes for token in told]

        alone = [await run(request, "alone") for request in requests]
        among = await asyncio.gather(*(run(request, "among") for request in requests))
    assert len(set(map(tuple, alone))) > count / 2, "drawn from next to nothing"
    differ = [i for i in range(count) if alone[i] != among[i]]
    for i in differ:
        at = next(k for k, pair in enumerate(zip(alone[i], among[i], strict=True)) if pair[0] != pair[1])
        borders = distribution(rows[f"alone{i}"][at], requests[i].sampling).cumsum()
        distance = float(np.abs(borders - uniform_at(i, at)).min())
        print(f"request {i} differs from token {at} on: the number lies {distance:.1e} from a border")
        assert distance < 1e-4
    assert len(differ) <= 4


async def test_cancel_frees_the_sequence_within_one_step(
    engine: OpenVINOEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    forward = LanguageRunner.forward

    def counted(self: LanguageRunner, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        return forward(self, *arguments)

    monkeypatch.setattr(LanguageRunner, "forward", counted)
    async with aclosing(engine.generate(ask(picture(1), "Go on.", max_tokens=None))) as events:
        await anext(events)
        assert num_free(engine) < loop_of(engine)._pool.num_blocks
        await events.aclose()
        seen = steps
        await idle(engine)
    assert steps - seen <= 1
    assert num_free(engine) == loop_of(engine)._pool.num_blocks


async def test_no_block_leaks_in_500_random_joins_and_cancels(tiny_model: Path) -> None:
    chance = random.Random(1)

    async def visit(engine: OpenVINOEngine, number: int) -> bool:
        request = ask(
            *([picture(number % 7)] if chance.random() < 0.5 else []), f"{number % 11} " * chance.randint(1, 40),
            max_tokens=chance.randint(1, 12), tenant=str(number % 3), priority=chance.randint(-1, 1),
        )  # fmt: skip
        stay = chance.choice([0, 1, 2, 100])
        async with aclosing(engine.generate(request)) as events:
            async for event in events:
                if isinstance(event, Finish):
                    return True
                if (stay := stay - 1) < 0:
                    return False
        raise AssertionError("no Finish")

    async with running(tiny_model, kv_cache_mib=1, max_concurrent=8, step_tokens=64) as engine:
        finished = 0
        for _ in range(25):
            tasks = [asyncio.create_task(visit(engine, chance.randint(0, 1000))) for _ in range(20)]
            for task in chance.sample(tasks, 3):
                await asyncio.sleep(0.001)
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(o in (True, False) or isinstance(o, asyncio.CancelledError) for o in outcomes), outcomes
            finished += sum(o is True for o in outcomes)
        await idle(engine)
        assert 100 < finished < 400
        assert num_free(engine) == loop_of(engine)._pool.num_blocks
        assert not loop_of(engine)._live
        assert not loop_of(engine)._sequences


async def test_a_prefix_is_computed_once_and_changes_nothing(engine: OpenVINOEngine) -> None:
    beginning = "Many words that begin this prompt and the next one too, more than a block holds. " * 2
    cold, first = await answer(engine, ask(picture(1), beginning + "A?"))
    warm, second = await answer(engine, ask(picture(1), beginning + "A?"))
    assert warm == cold
    assert first.usage.cached_tokens == 0
    block = loop_of(engine)._pool.block_size
    assert second.usage.cached_tokens == (first.usage.prompt_tokens - 1) // block * block > 0
    # Another end shares the beginning; what it answers is what an engine with an empty cache answers.
    other, third = await answer(engine, ask(picture(1), beginning + "B?"))
    fresh, fourth = await answer(engine, ask(picture(1), beginning + "B?", tenant="another"))
    assert third.usage.cached_tokens > 0
    assert fourth.usage.cached_tokens == 0, "tenants share nothing"
    assert other == fresh
    assert fourth.usage.images_cached == (False,)


async def test_another_picture_of_the_same_size_shares_no_prefix(engine: OpenVINOEngine) -> None:
    words = "The same words after it, in sufficient number to fill a block or even two of them."
    await answer(engine, ask(picture(1), words))
    alone, finish = await answer(engine, ask(picture(2), words))
    assert finish.usage.cached_tokens == 0
    assert alone == (await answer(engine, ask(picture(2), words, tenant="fresh")))[0]


async def test_a_conversation_reuses_its_answers(engine: OpenVINOEngine) -> None:
    """Generated tokens are kept by content, too."""
    unprintable = {i: -100.0 for c, i in tokenizer().get_vocab().items() if not (len(c) == 1 and c.isascii())}
    request = ask("Tell me something. " * 3, max_tokens=70, logit_bias=unprintable)
    text, first = await answer(engine, request)
    assert text.isascii()
    assert len(text) == 70
    turns = (*request.messages, Message[Image]("assistant", (Text(text),)), Message[Image]("user", (Text("And?"),)))
    _, second = await answer(engine, replace(request, messages=turns))
    assert second.usage.cached_tokens > first.usage.prompt_tokens


async def test_positions_go_on_from_the_prompt_s(engine: OpenVINOEngine) -> None:
    """After a picture a position is not the number of tokens before it: 18 tokens of 3x6 cells take 6 positions."""
    assert engine._loaded is not None
    prompt = engine._loaded.prompts.build(request := ask(picture(1), "x"))
    generation = Generation(request, prompt, 9, lambda _: None, engine._loaded.vocabulary)
    length = len(prompt.tokens)
    following = prompt.next_position
    assert following == length - 18 + 6
    assert generation.positions(length, length + 3).tolist() == [[following, following + 1, following + 2]] * 3
    across = generation.positions(length - 2, length + 2)
    assert across.tolist() == [[following - 2, following - 1, following, following + 1]] * 3


async def test_embeddings_of_a_picture_are_kept(engine: OpenVINOEngine) -> None:
    _, first = await answer(engine, ask("One", picture(5)))
    _, again = await answer(engine, ask("Two", picture(5), "and", picture(6)))
    assert first.usage.images_cached == (False,)
    assert again.usage.images_cached == (True, False)
    _, stranger = await answer(engine, ask("One", picture(5), tenant="other"))
    assert stranger.usage.images_cached == (False,), "tenants share nothing"
    assert first.usage.image_tokens == (18,)
    assert again.usage.image_tokens == (18, 18)


async def test_usage_and_counting_agree(engine: OpenVINOEngine) -> None:
    for request in MIXED:
        count = await engine.count_tokens(request)
        _, finish = await answer(engine, request)
        assert (finish.usage.prompt_tokens, finish.usage.image_tokens) == (count.prompt_tokens, count.image_tokens)
        assert finish.usage.completion_tokens == request.sampling.max_tokens
        assert finish.reason == "length"


async def test_the_context_is_a_limit(engine: OpenVINOEngine) -> None:
    price = (await engine.count_tokens(ask("x", max_tokens=1))).prompt_tokens
    with pytest.raises(ContextLengthExceeded, match=rf"{CONTEXT} tokens.*{price} tokens.*{CONTEXT} were") as caught:
        await answer(engine, ask("x", max_tokens=CONTEXT))
    assert caught.value.param == "messages"
    with pytest.raises(ContextLengthExceeded):
        await answer(engine, ask("x" * CONTEXT, max_tokens=None))
    with pytest.raises(ContextLengthExceeded, match="36 of them for pictures"):
        await engine.count_tokens(ask(picture(1, 6, 6), "x" * CONTEXT))
    assert loop_of(engine)._arrivals == 0, "nothing was scheduled"
    _, finish = await answer(engine, ask("x", max_tokens=CONTEXT - price))
    assert (finish.reason, finish.usage.completion_tokens) == ("length", CONTEXT - price)


async def test_a_text_that_cannot_fit_is_not_even_tokenised(
    engine: OpenVINOEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Megabytes would take seconds and gigabytes to learn what their length already tells."""
    monkeypatch.setattr(PromptTokenizer, "tokenize", lambda *_: pytest.fail("it was tokenised"))
    request = ask("a" * 3_000_000)
    with pytest.raises(ContextLengthExceeded, match="3000000 characters"):
        await engine.count_tokens(request)
    with pytest.raises(ContextLengthExceeded, match="3000000 characters"):
        await answer(engine, request)


async def test_priority_goes_first(tiny_model: Path) -> None:
    order: list[str] = []

    async def run(engine: OpenVINOEngine, name: str, priority: int) -> None:
        await answer(engine, ask(name, priority=priority, max_tokens=4))
        order.append(name)

    async with (
        running(tiny_model, max_concurrent=1) as engine,
        aclosing(engine.generate(ask("x", max_tokens=300))) as e,
    ):
        await anext(e)
        tasks = [asyncio.create_task(run(engine, n, p)) for n, p in (("low", -1), ("middle", 0), ("high", 1))]
        await asyncio.sleep(0.02)
        await e.aclose()
        await asyncio.gather(*tasks)
    assert order == ["high", "middle", "low"]


async def test_the_running_weights_are_the_file_s(tiny_model: Path, tmp_path: Path) -> None:
    """The digest is that of the file, and one changed weight changes digest and logits."""
    changed = tmp_path / "changed"
    shutil.copytree(tiny_model, changed)
    file = changed / "openvino_language_model.bin"
    content = bytearray(file.read_bytes())
    weights = np.frombuffer(content, np.float16)
    largest = int(np.argmax(np.abs(np.nan_to_num(weights[: VOCABULARY * 128]))))
    weights[largest] *= -1
    file.write_bytes(content)
    told = []
    for model in (tiny_model, changed):
        async with running(model) as engine:
            data = (model / "openvino_language_model.bin").read_bytes()
            assert engine.info.weights_digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
            told.append([t.logprob for t in await tell(engine, ask(picture(1), "What is this?", max_tokens=1))])
    assert told[0] != told[1]


async def test_pictures_of_impossible_sizes_are_refused(engine: OpenVINOEngine) -> None:
    pixels = np.zeros((56, 57, 3), np.uint8)
    for odd in (pixels, pixels[:, :0], pixels[:20, :20], np.zeros((28 * 10, 28 * 10, 3), np.uint8)):
        image = Image(odd, "sha256:odd", 57, 56, "image/png", 1)
        with pytest.raises(InvalidRequest):
            await answer(engine, ask(image, "What?"))


async def test_a_strip_may_exceed_the_pixel_budget(engine: OpenVINOEngine) -> None:
    """As `smart_resize` serves a picture of 1:60: one cell high, whatever that makes its area."""
    _, finish = await answer(engine, ask(picture(1, 1, 46), "What?"))
    assert finish.usage.image_tokens == (46,)


async def test_a_picture_that_cannot_be_encoded_ends_its_request_alone(
    engine: OpenVINOEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = VisionEncoder._compute

    def broken(self: VisionEncoder, image: Image) -> Any:
        if image.digest == "sha256:9":
            raise RuntimeError("no")
        return compute(self, image)

    expected, _ = await answer(engine, ask(picture(1), "Still?", tenant="before"))
    monkeypatch.setattr(VisionEncoder, "_compute", broken)
    bad, good = await asyncio.gather(
        answer(engine, ask(picture(9))), answer(engine, ask(picture(1), "Still?")), return_exceptions=True
    )
    assert isinstance(bad, EngineFailed)
    assert not isinstance(good, BaseException)
    assert good[0] == expected
    await idle(engine)
    assert num_free(engine) == loop_of(engine)._pool.num_blocks


async def test_a_failed_step_ends_its_requests_and_the_engine_goes_on(
    engine: OpenVINOEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: LanguageRunner, *arguments: Any) -> Any:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(LanguageRunner, "forward", broken)
        with pytest.raises(EngineFailed):
            await answer(engine, ask("Hello?"))
    assert (await answer(engine, ask("Hello?")))[1].reason == "length"


async def test_nobody_is_left_waiting_when_the_engine_thread_dies(
    engine: OpenVINOEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise AssertionError("a bug")

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(loop_of(engine)._scheduler, "schedule", broken)
    under_way = [answer(engine, ask(f"Hello {i}?")) for i in range(3)]
    outcomes = await asyncio.wait_for(asyncio.gather(*under_way, return_exceptions=True), 10)
    assert [type(o) for o in outcomes] == [EngineUnavailable] * 3
    with pytest.raises(EngineUnavailable):
        await asyncio.wait_for(answer(engine, ask("And now?")), 10)


async def test_life_ends(tiny_model: Path, tmp_path: Path) -> None:
    engine = OpenVINOEngine(ModelConfig(name="tiny", source=str(tiny_model)))
    with pytest.raises(EngineUnavailable):
        await answer(engine, ask("Too early?"))
    await engine.start()
    stream = asyncio.create_task(answer(engine, ask("Long", max_tokens=None)))
    await asyncio.sleep(0.05)
    await engine.close()
    await engine.close()
    with pytest.raises(EngineUnavailable):
        await stream
    with pytest.raises(EngineUnavailable):
        await answer(engine, ask("Too late?"))
    with pytest.raises(EngineUnavailable, match=r"config\.json"):
        await OpenVINOEngine(ModelConfig(name="tiny", source=str(tmp_path))).start()
    with pytest.raises(InvalidRequest, match="step_token"):
        OpenVINOEngine(ModelConfig(name="tiny", options={"step_token": 3}))


async def test_log_probabilities_do_not_depend_on_what_is_asked(engine: OpenVINOEngine) -> None:
    plain = await tell(engine, ask("Hello?"))
    request = ask("Hello?", logprobs=3)
    events = [e async for e in engine.generate(request)]
    told = [t for e in events if isinstance(e, TextDelta) for t in e.logprobs]
    assert [t.bytes for t in told] == [t.bytes for t in plain]
    assert len(told) == 16
    for token in told:
        assert len(token.top) == 3
        assert token.top[0].logprob == token.logprob  # greedy: the chosen is the likeliest
        assert token.logprob <= 0.0
    assert b"".join(bytes(t.bytes) for t in told if not bytes(t.bytes).startswith(b"<|")).decode(
        errors="replace"
    ) == "".join(e.text for e in events if isinstance(e, TextDelta))
