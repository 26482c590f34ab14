"""What the engine `easydel` may be told, without EasyDeL."""

from __future__ import annotations

from typing import Any

import pytest

from sightline.config import PEEK, ModelConfig
from sightline.engines import EngineInfo, load_engine
from sightline.engines.checkpoint import CheckpointError
from sightline.engines.easydel import EasyDelEngine, _sightings
from sightline.engines.easydel.options import read_options
from sightline.errors import EngineUnavailable, InvalidRequest
from sightline.images.budget import CellBudget


def config(**options: Any) -> ModelConfig:
    return ModelConfig(name=PEEK, engine="easydel", options=options)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"shards": 2}, "unknown field"),
        ({"dtype": "float8"}, "Invalid enum value"),
        ({"sharding": [1, 1, 1, 0, 1]}, "five numbers of devices"),
        ({"sharding": [1, -1, 1, -1, 1]}, "one of which may be -1"),
        ({"sharding": [1, 1]}, "of length 5"),
        ({"batch_sizes": [16, 4]}, "must grow"),
        ({"batch_sizes": [1, 8]}, r"at least max_concurrent \(16\)"),
        ({"picture_sizes": ["448"]}, "not '448'"),
        ({"picture_sizes": ["0x448"]}, "not '0x448'"),
        ({"memory_utilization": 1.5}, "< 1"),
        ({"quantization": "int3"}, "Invalid enum value"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        load_engine(config(**options))


def test_what_can_be_meant_is_taken() -> None:
    options = read_options(config(sharding=[1, -1, 1, 2, 1], batch_sizes=[1, 4, 16], picture_sizes=["448x336"]))
    assert options.sharding == (1, -1, 1, 2, 1)
    assert options.pictures() == ((448, 336),)
    assert read_options(config()).pictures() is None
    assert read_options(config(picture_sizes=[])).pictures() == ()


INFO = EngineInfo("easydel", 100, CellBudget(28, 28 * 28, 448 * 448))


def test_before_it_is_ready_it_sees_a_picture_of_each_size_as_it_is_served() -> None:
    requests = list(_sightings(INFO, ((100, 60), (30, 30))))
    sizes = [(image.served_width, image.served_height) for request in requests for image in request.images]
    assert sizes == [(112, 56), (28, 28)]


def test_a_size_that_the_context_does_not_hold_is_refused_and_the_default_left_out() -> None:
    assert list(_sightings(INFO, None)) == []
    with pytest.raises(CheckpointError, match="448x448 px are 256 tokens, which the context of 100 does not hold"):
        list(_sightings(INFO, ((448, 448),)))


@pytest.mark.anyio
async def test_without_easydel_it_says_what_to_run() -> None:
    pytest.importorskip("openvino")
    try:
        import easydel  # noqa: F401
    except ImportError:
        engine = EasyDelEngine(config())
        with pytest.raises(EngineUnavailable, match=r"sightline engine install easydel"):
            await engine.start()
        await engine.close()


@pytest.mark.anyio
async def test_another_architecture_is_refused_before_anything_is_imported(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma3"}')
    engine = EasyDelEngine(ModelConfig(name="m", engine="easydel", source=str(tmp_path)))
    with pytest.raises(EngineUnavailable, match="model_type is 'gemma3'; 'qwen2_vl' is served"):
        await engine.start()
