"""Text of templates and people for tokenizers and templates of other families than Qwen's (tests/engines/openvino)."""

from __future__ import annotations

import json
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from sightline.engines.chat import ChatTemplate, PromptTokenizer
from sightline.engines.sentinels import Written
from sightline.types import EngineRequest, Image, Message, Text

PARTS_ONLY = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: "
    "{% for part in m.content %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
STRINGS_ONLY = "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}"


def render(directory: Path, template: str, *texts: str) -> str:
    (directory / "chat_template.jinja").write_text(template)
    request = EngineRequest("", "", (Message[Image]("user", tuple(map(Text, texts))),))
    return "".join(run.text for run in ChatTemplate(directory, {"bos_token": "<s>"}).render(request))


@pytest.mark.parametrize("template", [PARTS_ONLY, STRINGS_ONLY])
def test_text_reaches_templates_that_know_only_parts_or_only_strings(template: str, tmp_path: Path) -> None:
    assert render(tmp_path, template, "Hel", "lo") == "<s>user: Hello"


def write_tokenizer(directory: Path, **specials: dict[str, Any]) -> Tokenizer:
    """A token a letter, and U+2581 for a space, put before what begins a prompt."""
    vocab = {"<unk>": 0, "\u2581": 1, **{letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz\n", 2)}}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.add_special_tokens([AddedToken(f"<{name}>", normalized=False, **how) for name, how in specials.items()])
    tokenizer.save(str(directory / "tokenizer.json"))
    return tokenizer


@pytest.mark.parametrize(
    "text",
    ["ab cd", "<a>ab cd", "ab <a> cd", "x<l> \n y", "x \n <l>y", "x<r> \n y", "x \n <r>y", "<r> a <l> b<a>", "<l>"],
)
def test_tokens_are_the_library_s(text: str, tmp_path: Path) -> None:
    """A space before the first word only, and white space beside special tokens that swallow it."""
    library = write_tokenizer(tmp_path, a={}, l={"lstrip": True}, r={"rstrip": True})
    assert PromptTokenizer(tmp_path).tokenize([Written(text, by_template=True)]) == library.encode(text).ids


def test_what_a_person_writes_swallows_nothing_and_is_never_special(tmp_path: Path) -> None:
    library = write_tokenizer(tmp_path, a={})
    special = json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"][-1]["id"]
    tokens = PromptTokenizer(tmp_path).tokenize([Written("x", by_template=True), Written("<a>", by_template=False)])
    assert special in library.encode("x<a>").ids
    assert special not in tokens
    assert len(tokens) > 3


def test_a_long_text_does_not_stop_the_other_threads(tmp_path: Path) -> None:
    """The event loop is one of them: a single request of some megabytes would stop the whole server."""
    write_tokenizer(tmp_path)
    longest, done = 0.0, threading.Event()

    def beat() -> None:
        nonlocal longest
        last = time.monotonic()
        while not done.wait(0.001):
            now = time.monotonic()
            longest, last = max(longest, now - last), now

    tokenizer = PromptTokenizer(tmp_path)
    beating = threading.Thread(target=beat)
    beating.start()
    begun = time.monotonic()
    tokens = tokenizer.tokenize([Written("hello, world " * 20_000, by_template=False)])
    taken = time.monotonic() - begun
    done.set()
    beating.join()
    assert len(tokens) > 20_000
    assert longest < taken / 2, "the other thread stood still while the text was taken apart"


def test_a_template_may_ask_for_the_date(tmp_path: Path) -> None:
    dated = "{{ strftime_now('%Y') }} " + STRINGS_ONLY
    assert render(tmp_path, dated, "a") == f"{datetime.now().year} <s>user: a"


def test_a_template_may_mark_what_is_generated(tmp_path: Path) -> None:
    marked = "{% for m in messages %}{% generation %}{{ m.role }}: {{ m.content }}{% endgeneration %}{% endfor %}"
    assert render(tmp_path, marked, "a") == "user: a"


def test_a_template_that_asks_for_capitals_leaves_no_trace_of_how_texts_are_kept(tmp_path: Path) -> None:
    loud = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    assert render(tmp_path, loud, "a b") == "a b"
