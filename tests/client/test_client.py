"""The client against a real server on the fake engine, which answers with what it saw."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sightline
from sightline import ApiError, AsyncClient, Client
from sightline.client import ClientError, ConnectionFailed, StreamBroken
from sightline.config import ModelConfig, Settings
from tests.api.serving import server_of

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    settings = Settings(models=(ModelConfig(name="echo", engine="fake"), ModelConfig(name="other", engine="fake")))
    with server_of(settings) as port:
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.new("RGB", size, colour)


def as_bytes(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_every_kind_of_picture_arrives_as_it_is(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(as_bytes(picture(RED)))
    array = np.zeros((48, 64, 3), np.uint8)
    array[..., 2] = 255
    for given, seen in (
        (path, "64x48 mostly red"),
        (str(path), "64x48 mostly red"),
        (as_bytes(picture(BLUE), "JPEG"), "64x48 mostly blue"),
        (picture(BLUE), "64x48 mostly blue"),
        (array, "64x48 mostly blue"),
        (array[::-1, ::-2], "32x48 mostly blue"),
        (np.full((40, 30), 255, np.uint8), "30x40 mostly white"),
        (picture(RED).convert("CMYK"), "64x48 mostly red"),
        (Image.new("RGBA", (64, 48), (0, 0, 255, 255)), "64x48 mostly blue"),
    ):
        assert seen in client.ask("hello", given).text


def test_a_picture_that_pil_has_not_turned_arrives_upright(client: Client) -> None:
    lying = Image.open(io.BytesIO(as_bytes(picture(RED), "JPEG", exif=_orientation(6))))
    assert "48x64 mostly red" in client.ask("hello", lying).text


def _orientation(flag: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = flag
    return exif


def test_a_data_url_is_passed_on(client: Client) -> None:
    url = "data:image/gif;base64,R0lGODlhAQABAIAAAP8AAP///yH5BAAAAAAALAAAAAABAAEAAAICRAEAOw=="
    with pytest.raises(ApiError, match="side"):
        client.ask("hello", url)


def test_pictures_are_reported(client: Client) -> None:
    answer = client.ask("hello", picture(RED), picture(BLUE, (32, 32)))
    assert str(answer) == answer.text == "I see 2 pictures: 64x48 mostly red; 32x32 mostly blue. You said: hello"
    assert [(p.width, p.height) for p in answer.pictures] == [(64, 48), (32, 32)]
    assert all(p.tokens > 0 for p in answer.pictures)
    assert (answer.model, answer.engine, answer.finish_reason) == ("echo", "fake", "stop")
    assert answer.prompt_tokens > sum(p.tokens for p in answer.pictures)


def test_a_conversation_goes_on_with_its_pictures(client: Client) -> None:
    first = client.ask("hello", picture(RED), model="other", system="Be brief.")
    again = client.ask("and now?", picture(BLUE), after=first)
    assert again.model == "other"
    assert "2 pictures: 64x48 mostly red; 64x48 mostly blue. You said: and now?" in again.text
    assert [m["role"] for m in again.conversation] == ["system", "user", "assistant", "user", "assistant"]
    with pytest.raises(ValueError, match="beginning"):
        client.ask("?", after=first, system="Be long.")


def test_the_stream_is_the_answer_in_pieces(client: Client) -> None:
    whole = client.ask("hello", picture(RED))
    stream = client.stream("hello", picture(RED))
    pieces = list(stream)
    assert len(pieces) > 3
    assert "".join(pieces) == whole.text == stream.answer.text
    assert stream.answer.pictures[0].tokens == whole.pictures[0].tokens
    assert client.stream("hello").answer.text == client.ask("hello").text, "unread pieces are read for it"


def test_fields_of_a_chat_completion_are_passed_on(client: Client) -> None:
    answer = client.ask("hello", max_tokens=2)
    assert (answer.finish_reason, answer.completion_tokens) == ("length", 2)
    with pytest.raises(TypeError, match="'n' is the client's own"):
        client.ask("hello", n=2)


def test_a_refusal_is_told(client: Client) -> None:
    answer = client.ask("[[fake: refuse]]")
    assert (answer.text, answer.refusal) == ("", "I will not answer that.")
    assert client.stream("[[fake: refuse]]").answer.refusal == "I will not answer that."


def test_errors_name_what_is_at_fault(client: Client) -> None:
    with pytest.raises(ApiError) as caught:
        client.ask("hello", picture(RED), b"no picture")
    error = caught.value
    assert (error.status, error.code) == (400, "invalid_image_format")
    assert error.param == "messages[0].content[1].image_url.url"
    assert error.request_id is not None
    with pytest.raises(ApiError, match="'nobody' does not exist"):
        client.ask("hello", model="nobody")


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (3, TypeError, "not int"),
        (np.zeros((4, 4, 3)), ValueError, "uint8"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, r"\[4, 4, 2\]"),
        ("no-such-file.png", FileNotFoundError, "no-such-file"),
    ],
)
def test_what_is_no_picture_is_refused_before_it_is_sent(
    client: Client, given: object, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        client.ask("hello", given)  # type: ignore[arg-type]


def test_a_fault_in_mid_stream_is_raised(client: Client) -> None:
    stream = client.stream("[[fake: say one two three]] [[fake: error 2]]")
    with pytest.raises(StreamBroken):
        list(stream)
    with pytest.raises(StreamBroken):
        stream.answer  # noqa: B018


def test_a_stream_that_is_left_frees_its_slot(client: Client) -> None:
    with client.stream("[[fake: slow 0.01]] [[fake: length 500]]") as stream:
        assert next(iter(stream))
    with pytest.raises(StreamBroken, match="left"):
        stream.answer  # noqa: B018


def test_where_nobody_listens() -> None:
    with (
        Client("http://127.0.0.1:9/v1", max_retries=0) as client,
        pytest.raises(ConnectionFailed, match="sightline serve"),
    ):
        client.ask("hello")
    with pytest.raises(ClientError, match="looks like"):
        Client("localhost:8000")


def test_a_body_of_ones_own_is_sent_as_it_is(url: str) -> None:
    async def ask() -> None:
        async with AsyncClient(url) as client:
            listed = await client.list_models()
            assert [model["sightline"]["engine"] for model in listed["data"]] == ["fake", "fake"]
            said = [{"role": "user", "content": "hello"}]
            stream = await client.send({"model": "echo", "messages": said, "stream": True, "max_tokens": 2})
            assert stream.request_id is not None
            answer = await stream.answer()
            assert (answer.finish_reason, answer.request_id) == ("length", stream.request_id)
            assert [message["role"] for message in answer.conversation] == ["user", "assistant"]

    asyncio.run(ask())


def test_the_asynchronous_client_is_the_same(url: str) -> None:
    async def ask() -> None:
        async with AsyncClient(url) as client:
            answers = await asyncio.gather(*(client.ask("hello", picture(RED)) for _ in range(4)))
            assert {a.text for a in answers} == {"I see 1 picture: 64x48 mostly red. You said: hello"}
            stream = await client.stream("and?", after=answers[0])
            pieces = [piece async for piece in stream]
            assert "".join(pieces) == (await stream.answer()).text
            assert await client.models() == ["echo", "other"]
            with pytest.raises(ApiError):
                await client.ask("hello", b"")

    asyncio.run(ask())


def test_names_are_public_and_cost_nothing_until_they_are_used() -> None:
    assert {"Client", "AsyncClient", "Answer", "ApiError", "ClientError"} <= set(dir(sightline))
    code = "import sys, sightline; print(sorted(m for m in sys.modules if m.startswith('sightline')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['sightline']"
