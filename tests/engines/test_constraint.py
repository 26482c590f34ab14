"""Grammars over a vocabulary of bytes: what they force, when they end, and that none can hold an engine up."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from jsonschema import Draft202012Validator
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from sightline.engines.answer import Vocabulary
from sightline.engines.chat import PromptTokenizer
from sightline.engines.constraint import Constraint, Constraints
from sightline.engines.grammar import to_grammar
from sightline.engines.tool_calls import ToolCalls
from sightline.engines.tool_formats import FORMATS
from sightline.errors import SchemaInvalid
from sightline.testing import lives
from sightline.types import EngineRequest, ResponseFormat, SamplingParams, Tool, ToolChoice
from tests.engines.openvino.tiny import VOCABULARY, special, tokenizer

EOS = special("<|im_end|>")
STRING = {"type": "string"}


def obj(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    directory: Path = tmp_path_factory.mktemp("vocabulary")
    tokenizer().save(str(directory / "tokenizer.json"))
    return Vocabulary(directory, VOCABULARY, frozenset({EOS}))


@pytest.fixture(scope="module")
def constraints(vocabulary: Vocabulary) -> Iterator[Constraints]:
    plain = tokenizer()
    made = Constraints(vocabulary, lambda text: list(plain.encode(text).ids), FORMATS["hermes"])
    yield made
    made.close()


def schema(value: dict[str, Any], *, strict: bool = True, **sampling: Any) -> EngineRequest:
    wanted = ResponseFormat("json_schema", value, strict)
    return EngineRequest("id", "model", (), SamplingParams(**sampling), response_format=wanted)


def made(constraints: Constraints, request: EngineRequest) -> Constraint:
    constraint = asyncio.run(constraints.of(request))
    assert constraint is not None
    return constraint


def written(constraint: Constraint, vocabulary: Vocabulary, seed: int, most: int = 400) -> tuple[str, bool]:
    """What a model without a thought of its own writes, and whether it came to an end."""
    chance = np.random.default_rng(seed)
    text = b""
    for _ in range(most):
        allowed = np.flatnonzero(constraint.mask())
        # It would rather close than open, or it would never end.
        closing = [t for t in allowed if vocabulary.spelling(int(t)) in (b'"', b"}", b"]") or t == EOS]
        token = int(chance.choice(closing if closing and chance.random() < 0.3 else allowed))
        done = constraint.accept(token)
        text += vocabulary.text_bytes(token)
        if done:
            return text.decode(), True
    return text.decode(errors="replace"), False


SCHEMAS: list[dict[str, Any]] = [
    {"enum": ["red", "blue", 3, None, {"a": [1]}]},
    {"type": "integer", "minimum": -3, "maximum": 12},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    obj(colour={"enum": ["red", "blue"]}, name={"type": "string", "maxLength": 5}),
    {"type": "string", "pattern": "^[a-z]{2}[0-9]$"},
    {"type": "string", "pattern": "^(a+)+$", "maxLength": 8},
    {"anyOf": [obj(a={"const": 1}), obj(b={"const": "x"})]},
    {"$ref": "#/$defs/n", "$defs": {"n": obj(v={"const": 1}, c={"type": "array", "items": {"$ref": "#/$defs/n"}})}},
    obj(when={"type": "string", "format": "date"}),
    {"allOf": [{"type": "string", "minLength": 2}, {"type": "string", "maxLength": 3}]},
]


@pytest.mark.parametrize("wanted", SCHEMAS, ids=str)
def test_whatever_is_sampled_is_valid(wanted: dict[str, Any], constraints: Constraints, vocabulary: Vocabulary) -> None:
    validator = Draft202012Validator(wanted, format_checker=Draft202012Validator.FORMAT_CHECKER)
    ended = 0
    for seed in range(6):
        text, is_whole = written(made(constraints, schema(wanted)), vocabulary, seed)
        assert "\n" not in text
        if is_whole:
            validator.validate(json.loads(text))
            ended += 1
    assert ended >= 2


def forced(constraint: Constraint, vocabulary: Vocabulary, text: str) -> bool:
    """Takes the text, every token of which must be allowed; whether the answer is complete then."""
    done = False
    for byte in tokenizer().encode(text).ids:
        assert not done, f"complete before {vocabulary.spelling(byte)!r}"
        assert constraint.mask()[byte], f"{vocabulary.spelling(byte)!r} of {text!r} may not come"
        done = constraint.accept(byte)
    return done


def test_it_ends_exactly_where_the_grammar_ends(constraints: Constraints, vocabulary: Vocabulary) -> None:
    assert forced(made(constraints, schema(obj(a={"const": 1}))), vocabulary, '{"a": 1}')
    number = made(constraints, schema({"type": "integer"}))
    assert not forced(number, vocabulary, "12")  # more digits may follow
    assert number.mask()[EOS]
    assert number.accept(EOS)


def test_an_end_that_is_to_be_ignored_comes_only_where_nothing_else_can(
    constraints: Constraints, vocabulary: Vocabulary
) -> None:
    number = made(constraints, schema({"type": "integer", "maximum": 123, "minimum": 1}, ignore_eos=True))
    assert not forced(number, vocabulary, "12")
    assert not number.mask()[EOS]


def test_a_client_s_options_of_the_compiler_are_not_taken(constraints: Constraints) -> None:
    sly = {**obj(a={"const": 1}), "x-guidance": {"whitespace_flexible": True, "lenient": True}, "not": {}}
    with pytest.raises(SchemaInvalid, match="not"):
        made(constraints, schema(sly))


def test_what_cannot_be_enforced_is_refused_if_strict_and_left_out_if_not(
    constraints: Constraints, vocabulary: Vocabulary
) -> None:
    wanted = {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}
    with pytest.raises(SchemaInvalid, match="uniqueItems") as caught:
        made(constraints, schema(wanted))
    assert caught.value.param == "response_format.json_schema.schema"
    assert forced(made(constraints, schema(wanted, strict=False)), vocabulary, "[1, 1]")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"allOf": [{"type": "string", "pattern": f"a{{{i}}}"} for i in range(2, 200)]}, "takes too long|regex"),
    ({"type": "string", "pattern": "^((a{1000}){1000}){1000}$"}, "too many expressions|takes too long"),
    ({"type": "integer", "multipleOf": 7919 * 104729}, "fuel|takes too long"),
    ({"type": "object", "properties": {f"p{i}": STRING for i in range(1500)}}, "items"),
    ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ({"type": "string", "pattern": "(a)\\1"}, "backreferences"),
    ({"type": "string", "pattern": "(("}, "unclosed group"),
    ({"type": "string", "format": "zork"}, "Unknown format"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
    ({"$ref": "#"}, "no value"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "no value"),
    (
        {"allOf": [{"anyOf": [obj(**{f"a{i}": STRING}), obj(**{f"b{i}": STRING})]} for i in range(14)]},
        "large|too long",
    ),
]


@pytest.mark.parametrize(("hostile", "said"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_is_too_much_is_refused_in_time(hostile: dict[str, Any], said: str, constraints: Constraints) -> None:
    """The event loop turns all the while."""

    async def run() -> float:
        compiling = asyncio.create_task(constraints.of(schema(hostile)))
        latest = 0.0
        while not compiling.done():
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            latest = max(latest, time.perf_counter() - began)
        with pytest.raises(SchemaInvalid, match=said) as caught:
            await compiling
        assert len(caught.value.message) < 400
        return latest

    began = time.perf_counter()
    latest = asyncio.run(run())
    assert time.perf_counter() - began < 10.0
    assert latest < 1.0


def test_nobody_pays_for_grammars_who_asks_for_none() -> None:
    code = "import sys, sightline.engines.openvino, sightline.service; sys.exit('llguidance' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


CHEAP: list[dict[str, Any]] = [
    {"enum": [f"value {i} {i * i}" for i in range(2500)]},
    {"type": "array", "items": STRING, "minItems": 60_000, "maxItems": 10**9},
    {"type": "string", "minLength": 60_000, "maxLength": 10**9},
    {"type": "string", "pattern": "^(a|aa)+$"},
    {"type": "string", "pattern": "(a|b)*a(a|b){12}$"},
    {"const": "x" * 60_000},
    {"$ref": "#/$defs/d24", "$defs": {**{f"d{i}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/d{i - 1}"}] * 2,
     "minItems": 2, "items": False} for i in range(1, 25)}, "d0": STRING}},
]  # fmt: skip


@pytest.mark.parametrize("large", CHEAP, ids=lambda value: str(value)[:50])
def test_what_is_large_but_cheap_is_served(
    large: dict[str, Any], constraints: Constraints, vocabulary: Vocabulary
) -> None:
    constraint = made(constraints, schema(large))
    began = time.perf_counter()
    for _ in range(30):
        if constraint.accept(int(np.flatnonzero(constraint.mask())[0])):
            break
    assert (time.perf_counter() - began) / 30 < 0.1


def test_a_grammar_that_grows_too_much_on_the_way_ends_its_answer_only(
    constraints: Constraints, vocabulary: Vocabulary
) -> None:
    constraint = made(constraints, schema({"type": "string", "pattern": "^(.{0,100}x){0,100}$"}))
    with pytest.raises(SchemaInvalid, match="Simplify the schema"):
        for letter in '"' + "xyyxyxxyxyyyxxyx" * 30:
            constraint.mask()
            constraint.accept(tokenizer().encode(letter).ids[0])
    text, is_whole = written(made(constraints, schema({"const": 1})), vocabulary, 0)
    assert (text, is_whole) == ("1", True)


_PARENT = """
import sys
from sightline.engines.constraint import _Trial
trial = _Trial()
assert trial.fault('start: "a"') == ""
print(trial._process.pid, flush=True)
sys.stdin.read()
"""


def test_the_process_of_trials_dies_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    deadline = time.monotonic() + 10.0
    while lives(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_trial_that_was_ended_is_followed_by_another(constraints: Constraints, vocabulary: Vocabulary) -> None:
    trial = constraints._trial
    assert trial.fault('start: "a"') == ""
    assert trial._process is not None
    trial._process.kill()
    trial._process.wait()
    assert trial.fault('start: %json {"not": {}}') != ""
    assert trial.fault('start: "a"') == ""


def test_tokens_may_be_taken_without_a_look_at_what_is_allowed(constraints: Constraints) -> None:
    tokens = tokenizer().encode('"' + "ab" * 20).ids
    for _ in range(200):
        constraint = made(constraints, schema({"type": "string", "pattern": "(a|b)*a(a|b){12}$"}))
        for token in tokens:
            assert not constraint.accept(token)
            time.sleep(0)  # gives the thread that computes masks its turn


def test_what_must_come_is_cut_into_tokens_as_the_model_was_taught(tmp_path: Path) -> None:
    """In a vocabulary that puts a space before every text, too: the first token of what is forced is asked for."""
    vocab = {"<unk>": 0, "</s>": 1, **{f"<0x{byte:02X}>": 2 + byte for byte in range(256)}, "\u2581": 258, '{"': 259}
    vocab |= {letter: 260 + index for index, letter in enumerate('{}:12ab"')}
    library = Tokenizer(models.BPE(vocab, [("{", '"')], unk_token="<unk>", byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    library.add_special_tokens([AddedToken("</s>", normalized=False, special=True)])
    library.save(str(tmp_path / "tokenizer.json"))
    spelled = Vocabulary(tmp_path, len(vocab), frozenset({1}))
    constraints = Constraints(spelled, PromptTokenizer(tmp_path).encode_later, FORMATS["hermes"])
    try:
        constraint = made(constraints, schema(obj(a={"enum": [1, 2]})))
        assert np.flatnonzero(constraint.mask()).tolist() == [259]
        text, is_whole = written(constraint, spelled, 0)
        assert is_whole
        assert json.loads(text)["a"] in (1, 2)
    finally:
        constraints.close()


# --- calls -----------------------------------------------------------------------------------------------------------

PAINT = Tool("paint", "", obj(colour={"$ref": "#/$defs/c"}) | {"$defs": {"c": {"enum": ["red", "blue"]}}}, strict=True)
COUNT = Tool("count", "", obj(n={"type": "integer", "minimum": 0, "maximum": 9}))


def tools(mode: Any, *names: str, form: str = "hermes", parallel: bool = True, **more: Any) -> EngineRequest:
    choice = ToolChoice(mode, names, parallel)
    return EngineRequest("id", "model", (), tools=(PAINT, COUNT), tool_choice=choice, **more)


@pytest.mark.parametrize("form", sorted(FORMATS))
@pytest.mark.parametrize("parallel", [True, False])
def test_required_calls_are_valid_calls(form: str, parallel: bool, vocabulary: Vocabulary) -> None:
    plain = tokenizer()
    constraints = Constraints(vocabulary, lambda text: list(plain.encode(text).ids), FORMATS[form])
    try:
        counts = set()
        for seed in range(4):
            constraint = made(constraints, tools("required", parallel=parallel))
            text, is_whole = written(constraint, vocabulary, seed, 900)
            calls = ToolCalls(FORMATS[form], (PAINT, COUNT))
            pieces = calls.push(text) + calls.flush()
            assert not "".join(piece.text for piece in pieces if piece.kind == "words").strip() or not is_whole
            counts.add(calls.num_calls)
            for number in range(calls.num_calls if is_whole else calls.num_calls - 1):
                name = next(p.text for p in pieces if p.kind == "call" and p.call == number)
                arguments = "".join(p.text for p in pieces if p.kind == "arguments" and p.call == number)
                tool = PAINT if name == "paint" else COUNT
                Draft202012Validator(dict(tool.parameters)).validate(json.loads(arguments))
        assert min(counts) >= 1
        assert parallel or counts == {1}
    finally:
        constraints.close()


def test_a_named_tool_is_the_one_that_is_called(constraints: Constraints, vocabulary: Vocabulary) -> None:
    text, _ = written(made(constraints, tools("required", "count", parallel=False)), vocabulary, 1)
    assert '"name": "count"' in text


def test_auto_with_a_strict_tool_is_words_or_a_valid_call(constraints: Constraints, vocabulary: Vocabulary) -> None:
    assert not forced(made(constraints, tools("auto")), vocabulary, "Just <words>, {no} call.")
    assert made(constraints, tools("auto")).mask()[EOS], "there need not be an answer"
    call = '<tool_call>\n{"name": "paint", "arguments": {"colour": "red"}}\n</tool_call>'
    constraint = made(constraints, tools("auto"))
    assert not forced(constraint, vocabulary, f"I paint.\n{call}")
    assert constraint.mask()[EOS]
    wrong = made(constraints, tools("auto"))
    forced(wrong, vocabulary, 'Hm <tool_call>\n{"name": "paint", "arguments": {"colour": "')
    assert {chr(t) for t in np.flatnonzero(wrong.mask())} <= {vocabulary_byte("r"), vocabulary_byte("b")}


def vocabulary_byte(letter: str) -> str:
    return chr(tokenizer().encode(letter).ids[0])


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_auto_is_words_or_a_call_in_every_format(form: str, vocabulary: Vocabulary, tmp_path: Path) -> None:
    """Where a mark is a token of its own, too."""
    definition = json.loads(tokenizer().to_str())
    for number, mark in enumerate(FORMATS[form].markers):
        definition["added_tokens"][-1 - number]["content"] = mark
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    marked = Vocabulary(tmp_path, VOCABULARY, frozenset({EOS}))
    plain = tokenizer()
    for spelled in (vocabulary, marked):
        constraints = Constraints(spelled, lambda text: list(plain.encode(text).ids), FORMATS[form])
        try:
            words = made(constraints, tools("auto"))
            assert words.mask()[EOS]
            assert not forced(words, vocabulary, "Well, { is no call.")
            assert words.mask()[EOS]
            bare = made(constraints, tools("auto", parallel=False))
            head = min(spelled.tokens_of([FORMATS[form].begin]), default=None)
            opening = "{" if form == "llama3" else FORMATS[form].begin[0]
            token = head if head is not None and form != "llama3" else plain.encode(opening).ids[0]
            assert bare.mask()[token]
        finally:
            constraints.close()


def test_without_a_strict_tool_auto_is_free(constraints: Constraints) -> None:
    request = tools("auto")
    free = EngineRequest("id", "model", (), tools=(COUNT,), tool_choice=request.tool_choice)
    assert to_grammar(free, FORMATS["hermes"], constraints.mark) is None
    assert to_grammar(tools("none"), FORMATS["hermes"], constraints.mark) is None


def test_a_body_or_a_call(constraints: Constraints, vocabulary: Vocabulary) -> None:
    both = tools("auto", parallel=False, response_format=ResponseFormat("json_schema", {"enum": ["a"]}, True))
    assert forced(made(constraints, both), vocabulary, '"a"')
    call = '<tool_call>\n{"name": "count", "arguments": {"n": 3}}\n</tool_call>'
    assert forced(made(constraints, both), vocabulary, call)
    only_calls = tools("required", response_format=ResponseFormat("json_schema", {"enum": ["a"]}, True))
    assert not made(constraints, only_calls).mask()[tokenizer().encode('"').ids[0]]


def test_arguments_of_a_tool_that_is_not_strict_may_be_beyond_a_grammar(
    constraints: Constraints, vocabulary: Vocabulary
) -> None:
    odd = Tool("odd", "", {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)"}}})
    request = EngineRequest("id", "model", (), tools=(odd,), tool_choice=ToolChoice("required", parallel=False))
    call = '<tool_call>\n{"name": "odd", "arguments": {"a": 1}}\n</tool_call>'
    assert forced(made(constraints, request), vocabulary, call)
    strict = Tool("odd", "", odd.parameters, strict=True, param="tools[0].function.parameters")
    refused = EngineRequest("id", "model", (), tools=(strict,))
    with pytest.raises(SchemaInvalid) as caught:
        made(constraints, refused)
    assert caught.value.param == "tools[0].function.parameters"
