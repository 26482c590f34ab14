"""The arguments that name a model."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from sightline.cli.models import add_model_arguments, to_model_config
from sightline.config import PEEK, ModelConfig, PictureSize
from sightline.errors import InvalidRequest


def config(*argv: str) -> ModelConfig:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    return to_model_config(parser.parse_args(argv))


def test_without_arguments_it_is_the_embedded_model() -> None:
    assert (config().name, config().engine, config().source) == (PEEK, "openvino", PEEK)


def test_a_directory_names_the_model(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    assert config("--model", str(tmp_path / "my-model")).name == "my-model"
    assert config("--model", str(tmp_path / "my-model"), "--name", "m").name == "m"


def test_a_directory_that_is_not_there_is_told() -> None:
    with pytest.raises(InvalidRequest, match="neither `peek` nor a directory"):
        config("--model", "nowhere")


def test_options_are_json_where_they_are_json() -> None:
    made = config("--engine", "fake", "--option", "slots=8", "--option", "step_s=0.5", "--option", "script=hi = there")
    assert (made.name, made.engine) == ("fake", "fake")
    assert made.options == {"slots": 8, "step_s": 0.5, "script": "hi = there"}


@pytest.mark.parametrize("bad", ["slots", "=8"])
def test_an_option_without_key_or_value_is_told(bad: str) -> None:
    with pytest.raises(InvalidRequest, match="KEY=VALUE"):
        config("--option", bad)


@pytest.mark.parametrize("given", ["image=4", '{"image": 4}'])
def test_how_many_pictures_a_request_may_have(given: str) -> None:
    assert config("--limit-mm-per-prompt", given).max_images == 4
    assert config().max_images is None


@pytest.mark.parametrize("bad", ["4", "image", "image=many", "video=1", "image=-1", '{"image": "4"}', "[1]"])
def test_a_limit_that_is_none_is_told(bad: str) -> None:
    with pytest.raises(InvalidRequest, match=r"limit.mm.per.prompt takes") as refused:
        config("--limit-mm-per-prompt", bad)
    assert refused.value.param == "limit_mm_per_prompt"


def test_how_large_pictures_are() -> None:
    made = config("--detail", "low", "--max-pixels", "50000", "--min-pixels", "4000")
    assert made.picture_size == PictureSize(detail="low", max_pixels=50_000, min_pixels=4_000)
    assert config("--engine", "fake", "--detail", "high").picture_size.detail == "high"


@pytest.mark.parametrize("bad", [["--max-pixels", "0"], ["--max-pixels", "10", "--min-pixels", "20"]])
def test_bounds_that_cannot_be_are_told(bad: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="_pixels"):
        config(*bad)
