"""Requests and answers as bytes between machines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sightline.cluster import parcels
from sightline.engines import EngineInfo
from sightline.errors import ContextLengthExceeded, EngineFailed, Overloaded
from sightline.types import (
    EmbeddingRequest,
    Embeddings,
    EngineRequest,
    Finish,
    Image,
    Message,
    Text,
    TextDelta,
    TokenCount,
    TranscriptionRequest,
    Usage,
)


def image(red: int, height: int, width: int) -> Image:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = red
    pixels[0, 0] = (1, 2, 3)
    return Image(pixels, f"sha256:{red}", width * 2, height * 2, "image/png", 99)


REQUEST = EngineRequest(
    "r", "m", (Message("user", (Text("a"), image(250, 5, 7), Text("b"), image(9, 30, 20))),), tenant="t", timeout_s=3.5
)  # fmt: skip


def test_a_request_arrives_with_its_pixels() -> None:
    arrived = parcels.to_request(parcels.from_request(REQUEST))
    for here, sent in zip(arrived.images, REQUEST.images, strict=True):
        np.testing.assert_array_equal(here.pixels, sent.pixels)
        assert not here.pixels.flags.writeable
        assert (here.digest, here.width, here.media_type) == (sent.digest, sent.width, sent.media_type)
    assert [p for p in arrived.messages[0].content if isinstance(p, Text)] == [Text("a"), Text("b")]
    assert replace(arrived, messages=()) == replace(REQUEST, messages=())


def test_a_slice_of_a_picture_arrives_as_it_looks() -> None:
    whole = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    sliced = replace(REQUEST, messages=(Message("user", (replace(image(1, 1, 1), pixels=whole[:, ::2]),)),))
    np.testing.assert_array_equal(parcels.to_request(parcels.from_request(sliced)).images[0].pixels, whole[:, ::2])


def test_counting_sends_sizes_and_no_pixels() -> None:
    big = replace(REQUEST, messages=(Message("user", (image(1, 1000, 1000),)),))
    parcel = parcels.from_count(big)
    assert len(parcel) < 1000
    assert parcels.to_count(parcel).images[0].pixels.shape == (1000, 1000, 3)


def test_samples_and_texts_arrive() -> None:
    samples = np.linspace(-1, 1, 1001, dtype=np.float32)
    spoken = parcels.to_transcription(
        parcels.from_transcription(TranscriptionRequest(request_id="r", model="m", samples=samples))
    )
    np.testing.assert_array_equal(spoken.samples, samples)
    texts = EmbeddingRequest("r", "m", ("a", (1, 2)))
    assert parcels.to_embedding(parcels.from_embedding(texts)) == texts


def test_answers_arrive() -> None:
    info = EngineInfo("fake", 77, features=frozenset({"seed"}))
    assert parcels.to_answer(parcels.from_info(info)) == info
    assert parcels.to_answer(parcels.from_counted(TokenCount(5, (2,)))) == TokenCount(5, (2,))
    for event in (TextDelta("ä", 2), Finish("stop", Usage(1, 2))):
        assert parcels.to_answer(parcels.from_event(event)) == event
    vectors = np.eye(3, dtype=np.float32)
    np.testing.assert_array_equal(parcels.to_answer(parcels.from_embeddings(Embeddings(vectors, 4))).vectors, vectors)


def test_errors_keep_their_class_and_what_they_carry() -> None:
    with pytest.raises(Overloaded, match="later") as caught:
        parcels.to_answer(parcels.from_error(Overloaded("later", retry_after_s=2.5)))
    assert caught.value.retry_after_s == 2.5
    with pytest.raises(ContextLengthExceeded) as long:
        parcels.to_answer(parcels.from_error(ContextLengthExceeded("too long", param="messages")))
    assert long.value.param == "messages"


def test_what_cannot_be_read_is_an_engine_that_failed() -> None:
    with pytest.raises(EngineFailed):
        parcels.to_answer(b"\x00\x00\x00\x00nonsense")
    with pytest.raises(EngineFailed):
        parcels.to_request(parcels.from_count(REQUEST))
