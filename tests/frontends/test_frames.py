"""Requests as they travel between a front end and the core."""

from __future__ import annotations

from dataclasses import fields

from sightline.frontends import frames, requests
from sightline.types import ChatRequest, ImageRef, Message, SamplingParams, SpeechRequest, Text


def test_every_field_of_a_request_has_its_place() -> None:
    assert {f.name for f in fields(ChatRequest)} == set(requests.WireChat.__struct_fields__)
    speech = {f.name for f in fields(SpeechRequest)} - {"audio"}
    assert speech | {"num_bytes", "param"} == set(requests.WireSpeech.__struct_fields__)


def test_a_picture_stays_where_it_is() -> None:
    secret = b"\x89PNG" + b"s" * 100_000
    ref = ImageRef(secret, "messages[0].content[1]", "low", max_pixels=5, min_pixels=2)
    content = (Text("a"), ref, Text("b"), ref)
    request = ChatRequest("r", "m", (Message("user", content),), SamplingParams(seed=3), tenant="t", n=2)
    data = frames.encode(frames.Generate(1, frames.Asker(), requests.to_wire_chat(request), 3.5))
    assert len(data) < 2000
    frame = frames.decode_to_core(data[frames.LENGTH_BYTES :])
    assert isinstance(frame, frames.Generate)
    places: list[int] = []

    def source(place: int, ref: requests.Ref) -> str:
        places.append(place)
        return ref.telling

    arrived = requests.from_wire_chat(frame.request, source)
    assert places == [0, 1]
    assert (arrived.sampling, arrived.tenant, arrived.n) == (request.sampling, "t", 2)
    first, second = arrived.images
    assert (first.param, first.detail, first.max_pixels, first.min_pixels) == (ref.param, "low", 5, 2)
    assert first.source == second.source
    other = requests.to_wire_chat(ChatRequest("r", "m", (Message("user", (ImageRef(secret + b"x", "p"),)),)))
    assert other.messages[0].content[0].telling != first.source  # type: ignore[union-attr]
