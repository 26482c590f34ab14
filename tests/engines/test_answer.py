from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.engines.answer import Answer, End, Vocabulary
from sightline.engines.checkpoint import CheckpointError
from sightline.engines.sampler import Logprobs
from sightline.engines.tool_calls import ToolCalls
from sightline.engines.tool_formats import FORMATS
from sightline.types import Delta, SamplingParams, TextDelta, Tool, ToolCallDelta
from tests.engines.openvino.tiny import VOCABULARY as VOCABULARY_SIZE
from tests.engines.openvino.tiny import special, tokenizer

EOS = special("<|im_end|>")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return make_vocabulary(tmp_path_factory.mktemp("vocabulary"))


def make_vocabulary(directory: Path) -> Vocabulary:
    tokenizer().save(str(directory / "tokenizer.json"))
    return Vocabulary(directory, VOCABULARY_SIZE, frozenset({EOS}))


def to_tokens(text: str) -> list[int]:
    """A token a byte."""
    return list(tokenizer().encode(text).ids)


def run(vocabulary: Vocabulary, tokens: list[int], *, max_tokens: int = 10_000, told: bool = False, **params: Any) -> (
    tuple[list[TextDelta], End | None]
):  # fmt: skip
    """Pushes tokens until the answer ends. Asserts that nothing comes after the end."""
    answer = Answer(vocabulary, SamplingParams(**params), frozenset({EOS}), max_tokens)
    deltas: list[TextDelta] = []
    for token in tokens:
        some, end = answer.push(token, Logprobs(-1.0, (token,), (-1.0,)) if told else None)
        deltas += [delta for delta in some if isinstance(delta, TextDelta)]
        if end is not None:
            return deltas, end
    return deltas, None


def text_of(deltas: list[TextDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def test_a_character_is_never_split(vocabulary: Vocabulary) -> None:
    deltas, _ = run(vocabulary, to_tokens("aé漢🙂z"))
    assert [d.text for d in deltas] == ["a", "é", "漢", "🙂", "z"]
    assert [d.num_tokens for d in deltas] == [1, 2, 3, 4, 1]


def test_a_stop_at_the_very_first_token(vocabulary: Vocabulary) -> None:
    assert run(vocabulary, to_tokens("abc"), stop=("a",)) == ([], End("stop", "a"))


def test_half_a_stop_is_text_in_the_end(vocabulary: Vocabulary) -> None:
    deltas, end = run(vocabulary, [*to_tokens("one STO"), EOS], stop=("STOP",))
    assert text_of(deltas) == "one STO"
    assert end == End("stop")
    deltas, end = run(vocabulary, to_tokens("one STO"), stop=("STOP",), max_tokens=7)
    assert text_of(deltas) == "one STO"
    assert end == End("length")


def test_half_a_character_in_the_end_is_a_replacement_character(vocabulary: Vocabulary) -> None:
    deltas, end = run(vocabulary, to_tokens("a🙂")[:-1], max_tokens=4)
    assert (text_of(deltas), end) == ("a\ufffd", End("length"))


def test_the_last_allowed_token_may_complete_a_stop(vocabulary: Vocabulary) -> None:
    deltas, end = run(vocabulary, to_tokens("ab"), stop=("b",), max_tokens=2)
    assert (text_of(deltas), end) == ("a", End("stop", "b"))


def test_special_tokens_are_silent_and_eos_ends(vocabulary: Vocabulary) -> None:
    deltas, end = run(vocabulary, [special("<|im_start|>"), *to_tokens("x"), EOS, *to_tokens("y")])
    assert (text_of(deltas), end) == ("x", End("stop"))


def test_nothing_ends_it_before_min_tokens(vocabulary: Vocabulary) -> None:
    tokens = [*to_tokens("ab"), EOS, *to_tokens("abc"), EOS]
    deltas, end = run(vocabulary, tokens, min_tokens=5, stop=("a",))
    assert text_of(deltas) == "ababc"
    assert end == End("stop")


def test_logprobs_come_with_their_text_and_never_for_a_stop(vocabulary: Vocabulary) -> None:
    deltas, _ = run(vocabulary, to_tokens("héSTOP"), stop=("STOP",), told=True)
    assert [bytes(t.bytes) for d in deltas for t in d.logprobs] == [b"h", "é".encode()[:1], "é".encode()[1:]]
    assert [len(d.logprobs) for d in deltas] == [1, 2]
    deltas, _ = run(vocabulary, [*to_tokens("hi"), EOS], told=True)
    assert [bytes(t.bytes) for d in deltas for t in d.logprobs] == [b"h", b"i"]
    assert deltas[0].logprobs[0].top[0].token == "h"


def llama_like(directory: Path) -> Vocabulary:
    """U+2581 for spaces, bytes for what is no token; the decoder drops a space at the beginning, as Llama's does."""
    words = ["<s>", "\u2581the", "\u2581", "a", *(f"<0x{byte:02X}>" for byte in range(256))]
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]  # fmt: skip
    definition = {
        "model": {"vocab": {word: number for number, word in enumerate(words)}},
        "decoder": {"type": "Sequence", "decoders": steps},
        "added_tokens": [{"id": 0, "content": "<s>", "special": True}],
    }
    (directory / "tokenizer.json").write_text(json.dumps(definition))
    return Vocabulary(directory, len(words), frozenset({0}))


def test_byte_fallback_gives_whole_characters_and_no_space_at_the_beginning(tmp_path: Path) -> None:
    vocabulary = llama_like(tmp_path)
    snowman = [4 + byte for byte in "☃".encode()]
    deltas, _ = run(vocabulary, [1, 1, *snowman, 2, 3, 0])
    assert text_of(deltas) == "the the☃ a"
    assert all("\ufffd" not in delta.text for delta in deltas)


def test_only_the_first_space_is_dropped_and_only_at_the_beginning(tmp_path: Path) -> None:
    vocabulary = llama_like(tmp_path)
    assert text_of(run(vocabulary, [3, 1, 0])[0]) == "a the"
    assert text_of(run(vocabulary, [2, 2, 3, 0])[0]) == " a"


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"decoder": {"type": "WordPiece"}, "added_tokens": []}))
    with pytest.raises(CheckpointError, match="byte-level"):
        Vocabulary(tmp_path, 8, frozenset())


@given(st.text("ab→🙂", max_size=30), st.lists(st.text("ab→🙂", min_size=1, max_size=4), max_size=3), st.booleans())
def test_whatever_the_text_and_the_stops(vocabulary: Vocabulary, text: str, stops: list[str], told: bool) -> None:
    """What is shown is the text up to the first stop to be complete; no delta ever takes anything back."""
    deltas, end = run(vocabulary, [*to_tokens(text), EOS], stop=tuple(stops), told=told)
    complete = [text.index(stop) + len(stop) for stop in stops if stop in text]
    if not complete:
        assert (text_of(deltas), end) == (text, End("stop"))
        expected = text
    else:
        assert end is not None
        assert end.stop_sequence in stops
        first = min(complete)
        expected = text[: first - len(end.stop_sequence or "")]
        assert text[:first].endswith(end.stop_sequence or "")
        assert text_of(deltas) == expected
    if told:
        assert b"".join(bytes(t.bytes) for d in deltas for t in d.logprobs) == expected.encode()
    assert all(d.text for d in deltas)


# --- calls -----------------------------------------------------------------------------------------------------------

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


def called(vocabulary: Vocabulary, tokens: list[int], form: str = "hermes", parallel: bool = True, most: int = 99) -> (
    tuple[list[Delta], End | None]
):  # fmt: skip
    calls = ToolCalls(FORMATS[form], [Tool("f")], parallel=parallel)
    answer = Answer(vocabulary, SamplingParams(), frozenset({EOS}), most, calls)
    deltas: list[Delta] = []
    for token in tokens:
        some, end = answer.push(token, Logprobs(-1.0, (token,), (-1.0,)))
        deltas += some
        if end is not None:
            return deltas, end
    return deltas, None


def test_words_have_log_probabilities_and_calls_have_none(vocabulary: Vocabulary) -> None:
    deltas, end = called(vocabulary, [*to_tokens(f"Well: {CALL}"), EOS])
    assert end == End("tool_calls")
    words = [delta for delta in deltas if isinstance(delta, TextDelta)]
    assert "".join(delta.text for delta in words) == "Well:"
    assert b"".join(bytes(told.bytes) for delta in words for told in delta.logprobs) == b"Well:"
    first, *others = [delta for delta in deltas if isinstance(delta, ToolCallDelta)]
    assert (first.index, first.name, first.arguments) == (0, "f", "")
    assert first.id is not None
    assert first.id.startswith("call_")
    assert "".join(delta.arguments for delta in others) == '{"a": 1}'
    assert all(delta.id is None and delta.name is None for delta in others)


def test_words_behind_a_call_keep_their_own_log_probabilities(vocabulary: Vocabulary) -> None:
    deltas, end = called(vocabulary, [*to_tokens(f"{CALL}and"), EOS])
    assert end == End("tool_calls")
    told = [told for delta in deltas if isinstance(delta, TextDelta) for told in delta.logprobs]
    assert b"".join(bytes(one.bytes) for one in told) == b"and"


def test_out_of_tokens_in_a_call_is_length(vocabulary: Vocabulary) -> None:
    deltas, end = called(vocabulary, to_tokens(CALL), most=45)
    assert end == End("length")
    assert any(isinstance(delta, ToolCallDelta) for delta in deltas)


def test_one_call_ends_the_answer_where_one_is_allowed(vocabulary: Vocabulary) -> None:
    deltas, end = called(vocabulary, to_tokens(CALL * 2), parallel=False)
    assert end == End("tool_calls")
    assert sum(isinstance(delta, ToolCallDelta) and delta.name is not None for delta in deltas) == 1


def test_what_becomes_no_call_is_words_at_the_end(vocabulary: Vocabulary) -> None:
    deltas, end = called(vocabulary, [*to_tokens('<tool_call>{"name": "g"'), EOS])
    assert end == End("stop")
    assert "".join(d.text for d in deltas if isinstance(d, TextDelta)) == '<tool_call>{"name": "g"'


def test_a_special_token_that_begins_a_call_is_heard_and_others_are_not(tmp_path: Path) -> None:
    definition = json.loads(tokenizer().to_str())
    begin, other = definition["added_tokens"][-1], definition["added_tokens"][-2]
    begin["content"] = "[TOOL_CALLS]"
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    vocabulary = Vocabulary(tmp_path, VOCABULARY_SIZE, frozenset({EOS}))
    tokens = [other["id"], *to_tokens("so"), begin["id"], *to_tokens('[{"name": "f", "arguments": {}}]'), EOS]
    deltas, end = called(vocabulary, tokens, form="mistral")
    assert end == End("tool_calls")
    assert "".join(d.text for d in deltas if isinstance(d, TextDelta)) == "so"
    assert [d.name for d in deltas if isinstance(d, ToolCallDelta) and d.name] == ["f"]


def test_a_complete_answer_ends_with_its_last_token(vocabulary: Vocabulary) -> None:
    answer = Answer(vocabulary, SamplingParams(stop=("}!",)), frozenset({EOS}), 100)
    shown = [answer.push(token)[0] for token in to_tokens("{")]
    last, end = answer.push(to_tokens("}")[0], is_last=True)  # held back: it could become a stop string
    assert end == End("stop")
    assert "".join(d.text for some in (*shown, last) for d in some if isinstance(d, TextDelta)) == "{}"
