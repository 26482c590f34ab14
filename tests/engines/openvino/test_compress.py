from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from sightline.engines.openvino import files
from sightline.engines.openvino.compress import quantise, to_int8
from sightline.engines.openvino.export import export
from sightline.errors import EngineUnavailable
from tests.engines.openvino.test_openvino_engine import ask, running, tell

pytestmark = pytest.mark.anyio

F32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
PEEK = Path(__file__).parents[3] / "src" / "sightline" / "peek" / "model"


@pytest.fixture(scope="session")
def int8_model(tiny_checkpoint: Path) -> Path:
    """Both forms side by side, as they ship."""
    out = tiny_checkpoint.parent / "both"
    export(tiny_checkpoint, out)
    export(tiny_checkpoint, out, int8=True)
    return out


@pytest.mark.parametrize("axis", [0, 1])
def test_no_value_is_off_by_more_than_half_a_step_of_its_channel(axis: int) -> None:
    values = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float16)
    values[3] *= 100  # one loud row must not cost the others their precision
    values[5] = 0
    int8, scale = quantise(values, axis)
    assert int8.dtype == np.int8
    assert scale.shape == ((1, 30) if axis == 0 else (40, 1))
    assert (np.abs(int8 * scale - values.astype(np.float32)) <= scale / 2 * 1.001).all()
    assert np.abs(int8.astype(int)).max(axis=axis).max() == 127  # symmetric: -128 is never used
    assert int8.min() >= -127


def test_only_matrices_and_tables_become_int8() -> None:
    rng = np.random.default_rng(0)
    matrix, bias, table = rng.standard_normal((64, 48)), rng.standard_normal((1, 64)), rng.standard_normal((99, 48))
    tokens = ops.parameter([-1], np.int64)
    rows = ops.gather(ops.constant(table.astype(np.float32)), tokens, ops.constant(np.int64(0)))
    product = ops.matmul(rows, ops.constant(matrix.astype(np.float32)), False, True)
    model = ov.Model([ops.add(product, ops.constant(bias.astype(np.float32)))], [tokens], "little")
    asked = np.array([5, 98, 0])
    expected = table[asked] @ matrix.T + bias
    assert to_int8(model) == 2
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    assert sorted(op.data.shape for op in constants if op.get_element_type() == ov.Type.i8) == [(64, 48), (99, 48)]
    got = ov.Core().compile_model(model, "CPU", F32)([asked])[0]
    np.testing.assert_allclose(got, expected, atol=0.25)
    assert np.abs(got - expected).max() > 0  # compressed it was


def types_of_weights(file: Path) -> set[str]:
    """Types in which the matrices of a model lie on disk."""
    model = ov.Core().read_model(file)
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    return {op.get_element_type().get_type_name() for op in constants if op.data.ndim == 2 and op.data.size >= 4096}


def test_an_int8_export_has_the_same_ports_and_half_the_bytes(int8_model: Path) -> None:
    core, directories = ov.Core(), (int8_model, int8_model / "int8")
    for name in files.MODELS:
        models: list[Any] = [core.read_model(directory / name) for directory in directories]
        names = [[port.get_any_name() for port in [*m.inputs, *m.outputs]] for m in models]
        assert names[0] == names[1]
        assert types_of_weights(int8_model / "int8" / name) == {"i8"}
        plain, small = ((directory / name).with_suffix(".bin").stat().st_size for directory in directories)
        assert small < 0.6 * plain
    assert {path.suffix for path in (int8_model / "int8").iterdir()} == {".xml", ".bin"}


async def test_the_engine_runs_the_int8_weights_when_told_to(int8_model: Path) -> None:
    told = {}
    for weights in ("fp16", "int8"):
        async with running(int8_model, weights=weights) as engine:
            told[weights] = await tell(engine, ask("Say something.", max_tokens=1))
    plain, small = (told[weights][0].logprob for weights in ("fp16", "int8"))
    assert plain != small  # other weights
    assert plain == pytest.approx(small, abs=0.2)  # that are nearly the same


async def test_int8_weights_that_are_not_there_are_told_of(tiny_model: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"int8/openvino_language_model.xml is missing.*export --int8"):
        async with running(tiny_model, weights="int8"):
            pass


def test_int8_pictures_and_texts_are_nearly_the_same(tmp_path: Path) -> None:
    """On the weights that ship: random ones would say little about what rounding costs."""
    export(PEEK, tmp_path, int8=True)
    rng, core = np.random.default_rng(0), ov.Core()
    patches = rng.standard_normal((16, 1176)).astype(np.float32)
    tokens = rng.integers(0, 200, (1, 60))
    for name, inputs in ((files.VISION_PATCHES, patches), (files.TEXT_EMBEDDINGS, tokens)):
        plain, small = (core.compile_model(d / name, "CPU", F32)([inputs])[0] for d in (PEEK, tmp_path / "int8"))
        assert np.abs(plain - small).max() < 0.03 * np.abs(plain).max()
        assert np.corrcoef(plain.ravel(), small.ravel())[0, 1] > 0.9995
