"""What is asked and what is shown, without Gradio."""

from __future__ import annotations

from typing import Any

import pytest

from sightline.client import Answer, ApiError, PictureReport, StreamBroken
from sightline.ui.conversation import (
    Failure,
    Parameters,
    Turn,
    pictures_of,
    read_urls,
    to_choices,
    to_failure,
    to_report,
    to_request,
    to_shown,
    to_summary,
)

URL = "https://example.com/a.jpg"


def named(path: str) -> str:
    return f"<{path}>"


def request(*turns: Turn, **parameters: Any) -> dict[str, Any]:
    return to_request(turns, Parameters("peek", **parameters), named)


def answered(text: str, *pictures: PictureReport, **more: Any) -> Answer:
    return Answer(text, "peek", "stop", 64, 2, pictures, engine="openvino", request_id="req_1", **more)


# --- what is asked ---------------------------------------------------------------------------------------------------


def test_a_question_alone_is_the_least_that_can_be_sent() -> None:
    assert request(Turn("Hello?")) == {
        "model": "peek",
        "messages": [{"role": "user", "content": "Hello?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_pictures_come_before_the_question_in_their_order() -> None:
    (message,) = request(Turn("What is this?", ("a.png", URL)), detail="low")["messages"]
    assert message["content"] == [
        {"type": "image_url", "image_url": {"url": "<a.png>", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
        {"type": "text", "text": "What is this?"},
    ]


def test_a_picture_alone_is_a_question() -> None:
    (message,) = request(Turn("", ("a.png",)))["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url"]


def test_parameters_are_sent_as_the_controls_say() -> None:
    body = request(Turn("?"), system=" Be brief. ", temperature=0.0, max_tokens=5, max_pixels=50_000)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["max_tokens"], body["max_pixels"]) == (0.0, 5, 50_000)
    assert not {"temperature", "max_tokens", "max_pixels"} & request(Turn("?")).keys()


def test_a_conversation_goes_on_without_what_was_refused() -> None:
    turns = (
        Turn("What colour?", ("red.png",), text="red"),
        Turn("And this?", ("http://10.0.0.1/x.png",), failure=Failure("no")),
        Turn("Tell me all.", ("b.png",), text="It is", stopped=True),
        Turn("Stopped at once.", stopped=True),
        Turn("And the shape?", ("c.png",)),
    )
    messages = request(*turns)["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant", "user"]
    assert [m["content"] for m in messages if m["role"] == "assistant"] == ["red", "It is"]
    assert "10.0.0.1" not in str(messages)
    assert pictures_of(turns) == ("red.png", "b.png", "c.png")


def test_addresses_are_told_apart() -> None:
    assert read_urls(f"  {URL}\nHTTP://localhost:9000/b.png ") == (URL, "HTTP://localhost:9000/b.png")
    assert read_urls(" ") == ()
    for wrong in ("example.com/a.jpg", "/etc/passwd", "file:///etc/passwd", f"{URL} a.png"):
        with pytest.raises(ValueError, match="no address"):
            read_urls(wrong)


def test_models_that_see_come_first_and_others_are_not_offered() -> None:
    def model(name: str, vision: bool | None, state: str = "ready", work: list[str] | None = None) -> dict[str, Any]:
        return {"id": name, "sightline": {"vision": vision, "state": state, "work": work}}

    listed = [
        model("words", False, work=["completions", "messages"]),
        model("whisper", False, work=["transcription"]),
        model("slow", None, state="loading"),
        model("peek", True, work=["messages"]),
        {"id": "of-another-server"},
    ]
    assert to_choices({"data": listed}) == [
        ("slow · loading", "slow"),
        ("peek · sees pictures", "peek"),
        ("of-another-server", "of-another-server"),
        ("words · text only", "words"),
    ]


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_a_turn_is_shown_with_its_pictures_its_answer_and_what_it_cost() -> None:
    report = PictureReport(480, 360, 224, 168, 48, cached=False)
    turn = Turn(
        "What colour?", ("pictures/red.png",), text="red", answer=answered("red", report), first_token_s=0.2231,
        total_s=1.26, seen=("pictures/red.png",), snippets={"curl": "curl x", "Python": "print()"},
    )  # fmt: skip
    asked, said, cost = to_shown((turn,))
    assert asked == {"role": "user", "content": [{"path": "pictures/red.png"}, "What colour?"]}
    assert said == {"role": "assistant", "content": "red"}
    assert cost["metadata"] == {"title": to_summary(turn), "status": "done"}
    assert to_summary(turn) == "1 picture, 48 tokens · 64 tokens in, 2 out · first after 223 ms · 1.3 s in all"
    assert "| red.png | 480 × 360 | 224 × 168 | 48 | no |" in cost["content"]
    assert "Prompt: 64 tokens. Answer: 2 tokens." in cost["content"]
    assert "Answered by `peek` on `openvino`, request `req_1`." in cost["content"]
    assert "```bash\ncurl x\n```" in cost["content"]


def test_what_was_at_hand_is_told() -> None:
    reports = [PictureReport(9, 9, 9, 9, 16, cached=True), PictureReport(8, 8, 9, 9, 1, cached=False)]
    text = to_report(
        Turn("?", seen=("/tmp/a_b.png", URL), answer=answered("x", *reports, cached_tokens=32), snippets={})
    )
    assert r"| a\_b.png | 9 × 9 | 9 × 9 | 16 | yes |" in text
    assert "example.com/a.jpg | 8 × 8 | 9 × 9 | 1 | no |" in text
    assert "64 tokens, 32 of them kept from before." in text


def test_a_pictures_address_is_shown_as_text_for_nobody_to_fetch() -> None:
    (asked,) = to_shown((Turn("?", (URL,)),))
    assert asked["content"] == [f"Picture at {URL}", "?"]


def test_an_error_is_shown_in_the_servers_words_with_its_request() -> None:
    refused = ApiError(
        400,
        "messages.0.content.0: `a<b>` is *not* taken",
        headers={"x-request-id": "req_7"},
        error={"code": "invalid_image_url"},
    )
    turn = Turn("?", failure=to_failure(refused))
    *_, shown = to_shown((turn,))
    assert r"\`a&lt;b&gt;\` is \*not\* taken" in shown["content"]
    assert "status 400 · `invalid_image_url` · request `req_7`" in shown["content"]
    assert to_failure(StreamBroken("It broke."), "req_8") == Failure("It broke.", request_id="req_8")


def test_what_there_is_of_an_answer_stays_when_it_is_stopped_or_breaks() -> None:
    for ended, told in ((Turn("?", text="It is", stopped=True), "Stopped"),
                        (Turn("?", text="It is", failure=Failure("It broke.")), "It broke.")):  # fmt: skip
        _, said, end = to_shown((ended,))
        assert said["content"] == "It is"
        assert told in end["content"]


def test_a_model_that_says_nothing_or_declines_is_told() -> None:
    assert "said nothing" in to_shown((Turn("?", answer=answered("")),))[1]["content"]
    assert "No, thanks." in to_shown((Turn("?", answer=answered("", refusal="No, thanks.")),))[1]["content"]


def test_code_is_fenced_whatever_ticks_are_in_it() -> None:
    text = to_report(Turn("?", answer=answered("x"), snippets={"curl": "a ```` b"}))
    assert "`````bash\na ```` b\n`````" in text
