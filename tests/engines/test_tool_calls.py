"""Words and calls in a model's text, in every format, however the text is cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.engines.tool_calls import Piece, ToolCalls
from sightline.engines.tool_formats import FORMATS, format_of
from sightline.types import Tool

TOOLS = (
    Tool("look", parameters={"type": "object", "properties": {"at": {"type": "string"}, "n": {"type": "integer"}}}),
    Tool("hear"),
)


def read(name: str, text: str, *, cuts: frozenset[int] = frozenset(), parallel: bool = True) -> list[Piece]:
    calls = ToolCalls(FORMATS[name], TOOLS, parallel=parallel)
    pieces: list[Piece] = []
    begin = 0
    for end in (*sorted(cut for cut in cuts if cut < len(text)), len(text)):
        pieces += calls.push(text[begin:end])
        begin = end
    return pieces + calls.flush()


def told(pieces: list[Piece]) -> tuple[str, list[tuple[str, str]]]:
    """The words, and the calls with their arguments."""
    words = "".join(piece.text for piece in pieces if piece.kind == "words")
    calls: list[tuple[str, str]] = []
    for piece in pieces:
        if piece.kind == "call":
            assert piece.call == len(calls)
            calls.append((piece.text, ""))
        elif piece.kind == "arguments":
            assert piece.call == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + piece.text)
    return words, calls


LOOK = '{"name": "look", "arguments": {"at": "a \\"}\\u00e9{", "n": 2}}'
ARGUMENTS = '{"at": "a \\"}\\u00e9{", "n": 2}'
CASES: list[tuple[str, str, str | None, list[tuple[str, str]]]] = [
    ("hermes", "no call at all", "no call at all", []),
    ("hermes", f"<tool_call>\n{LOOK}\n</tool_call>", "", [("look", ARGUMENTS)]),
    ("hermes", f"I look.\n\n<tool_call>{LOOK}</tool_call>\n", "I look.", [("look", ARGUMENTS)]),
    (
        "hermes",
        f'<tool_call>\n{LOOK}\n</tool_call>\n<tool_call>{{"name":"hear","arguments":{{}}}}</tool_call> then',
        " then",
        [("look", ARGUMENTS), ("hear", "{}")],
    ),
    ("hermes", '<tool_call>{"arguments": {"n": 1}, "name": "look"}</tool_call>', "", [("look", '{"n": 1}')]),
    ("hermes", '<tool_call>{"name": "hear"}</tool_call>', "", [("hear", "{}")]),
    ("hermes", '<tool_call>{"name": "look", "arguments": "{\\"n\\": 1}"}</tool_call>', "", [("look", '{"n": 1}')]),
    ("hermes", '<tool_call>{"name": "look", "arguments": {}, "id": {"a": 1}}</tool_call>', "", [("look", "{}")]),
    # What is no call is words, to the last letter.
    ("hermes", '<tool_call>{"name": "fly", "arguments": {}}</tool_call>', None, []),
    ("hermes", "a <tool_call>what?</tool_call> b", None, []),
    ("hermes", '<tool_call>{"name": 5, "arguments": {}}</tool_call>', None, []),
    ("hermes", '<tool_call>{"name": "look", "argu', None, []),
    ("hermes", "x <tool_cal", None, []),
    ("hermes", f"<tool_call>oops <tool_call>{LOOK}</tool_call>", "<tool_call>oops", [("look", ARGUMENTS)]),
    # Out of tokens, or out of its mind, in the middle of arguments.
    ("hermes", '<tool_call>{"name": "look", "arguments": {"at": "he', "", [("look", '{"at": "he')]),
    ("hermes", '<tool_call>{"name": "look", "arguments": {"at": </tool_call> b', " b", [("look", '{"at": ')]),
    ("llama3", '{"name": "look", "parameters": {"n": 1}}', "", [("look", '{"n": 1}')]),
    ("llama3", ' <|python_tag|>{"name": "hear", "parameters": {}}', "", [("hear", "{}")]),
    (
        "llama3",
        '{"name": "look", "parameters": {"n": 1}}; {"name": "hear", "parameters": {}}',
        "",
        [("look", '{"n": 1}'), ("hear", "{}")],
    ),
    ("llama3", '{"answer": {"a": 1}}', None, []),
    ("llama3", '  {"name": "nobody"} ', None, []),
    ("llama3", "{ no", None, []),
    ("llama3", 'say {"name": "look", "parameters": {}}', None, []),
    (
        "mistral",
        f'[TOOL_CALLS] [{LOOK}, {{"name": "hear", "arguments": {{}}}}]',
        "",
        [("look", ARGUMENTS), ("hear", "{}")],
    ),
    ("mistral", "so [TOOL_CALLS] it is", None, []),
    ("mistral-args", 'ok[TOOL_CALLS]look[ARGS]{"n": 1}', "ok", [("look", '{"n": 1}')]),
    (
        "mistral-args",
        '[TOOL_CALLS]look[CALL_ID]abcdefghi[ARGS]{"n": 1}[TOOL_CALLS]hear[ARGS]{}',
        "",
        [("look", '{"n": 1}'), ("hear", "{}")],
    ),
    ("mistral-args", "[TOOL_CALLS]fly[ARGS]{}", None, []),
    (
        "qwen3-coder",
        "Hm.\n<tool_call>\n<function=look>\n<parameter=at>\n12 <b>\nx\n</parameter>\n<parameter=n>\n3\n</parameter>\n"
        "</function>\n</tool_call>",
        "Hm.",
        [("look", '{"at": "12 <b>\\nx", "n": 3}')],
    ),
    ("qwen3-coder", "<tool_call>\n<function=hear>\n</function>\n</tool_call>", "", [("hear", "{}")]),
    ("qwen3-coder", "<tool_call>\n<function=fly>\n</function>\n</tool_call>", None, []),
    ("qwen3-coder", "<tool_call>\n<funk", None, []),
]


@pytest.mark.parametrize(("name", "text", "words", "calls"), CASES, ids=lambda value: str(value)[:30])
def test_words_and_calls(name: str, text: str, words: str | None, calls: list[tuple[str, str]]) -> None:
    assert told(read(name, text)) == (text if words is None else words, calls)


@given(st.sampled_from(CASES), st.frozensets(st.integers(1, 120)))
def test_cuts_change_nothing(case: tuple[str, str, str | None, list[tuple[str, str]]], cuts: frozenset[int]) -> None:
    name, text, words, calls = case
    pieces = read(name, text, cuts=cuts)
    assert told(pieces) == (text if words is None else words, calls)
    if words is None:
        assert sum(piece.num_characters for piece in pieces) == len(text)


@given(st.sampled_from(sorted(FORMATS)), st.text(alphabet='<>/{}[]"\\:,; abcdefnotl_' + "ARGSTOLCI", max_size=60))
def test_anything_is_read_and_without_a_call_nothing_is_lost(name: str, text: str) -> None:
    words, calls = told(read(name, text, cuts=frozenset(range(1, 60, 3))))
    assert calls or words == text


def test_arguments_come_as_they_are_written() -> None:
    calls = ToolCalls(FORMATS["hermes"], TOOLS)
    assert calls.push('<tool_call>\n{"name": "look", "arguments": ') == []
    assert [p.kind for p in calls.push('{"at":')] == ["call", "arguments"]
    assert [(p.kind, p.text) for p in calls.push(' "here"')] == [("arguments", ' "here"')]


def test_words_are_not_held_back_for_longer_than_they_may_be_a_call() -> None:
    calls = ToolCalls(FORMATS["hermes"], TOOLS)
    assert [p.text for p in calls.push("a <tool")] == ["a"]
    assert [p.text for p in calls.push("s> b")] == [" <tools> b"]


def test_one_call_where_one_is_allowed() -> None:
    text = f"<tool_call>{LOOK}</tool_call><tool_call>{LOOK}</tool_call>"
    calls = ToolCalls(FORMATS["hermes"], TOOLS, parallel=False)
    assert told(calls.push(text)) == ("", [("look", ARGUMENTS)])
    assert calls.is_done


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{% for tool in tools %}<tool_call>{% endfor %}", "hermes"),
        ("<tool_call>\n<function={{ name }}>", "qwen3-coder"),
        ('{"name": function name, "parameters": dictionary}', "llama3"),
        ("[TOOL_CALLS] [", "mistral"),
        ("[TOOL_CALLS]{{ name }}[ARGS]", "mistral-args"),
        ("nothing known", "hermes"),
    ],
)
def test_the_template_says_which_format(template: str, name: str) -> None:
    assert format_of(template).name == name


def test_texts_of_elements_are_what_the_schema_says() -> None:
    text = "<tool_call><function=look><parameter=at>7</parameter><parameter=n>7</parameter></function></tool_call>"
    ((_, arguments),) = told(read("qwen3-coder", text))[1]
    assert json.loads(arguments) == {"at": "7", "n": 7}


@pytest.mark.parametrize("name", ["hermes", "mistral", "mistral-args", "qwen3-coder", "llama3"])
def test_what_is_left_of_a_call_that_had_to_be_is_no_words(name: str) -> None:
    """`max_tokens` ended the answer in the middle of a call that `tool_choice` asked for: nobody is shown its tags."""
    begin = FORMATS[name].begin
    whole = {
        "qwen3-coder": f"{begin}\n<function=look>\n<parameter=n>\n2\n</parameter>\n</function>\n</tool_call>",
        "mistral": f"{begin}[{LOOK}]",
        "mistral-args": f"{begin}look[ARGS]{ARGUMENTS}",
        "llama3": '{"name": "look", "parameters": {"n": 2}}',
    }.get(name, f"{begin}\n{LOOK}\n</tool_call>")
    for cut in range(len(whole) + 1):
        calls = ToolCalls(FORMATS[name], TOOLS, enforced=True)
        pieces = [*calls.push(whole[:cut]), *calls.flush()]
        words, found = told(pieces)
        assert words == ""
        assert sum(piece.num_characters for piece in pieces) == cut
        assert [tool for tool, _ in found] in ([], ["look"])
    assert found
