"""What graphs of ours are built of: constants, matrix products, named inputs and outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from openvino import opset13 as ops


def linear(x: Any, weight: np.ndarray[Any, Any]) -> Any:
    return ops.matmul(x, constant(weight), transpose_a=False, transpose_b=True)


def constant(values: np.ndarray[Any, Any]) -> Any:
    """A weight in the checkpoint's precision, f32 to whoever uses it."""
    node = ops.constant(values, shared_memory=False)
    return node if values.dtype == np.float32 else ops.convert(node, "f32")


def scalar(value: float) -> Any:
    return ops.constant(np.float32(value))


def ints(value: int | list[int]) -> Any:
    return ops.constant(np.array(value, np.int64))


def parameter(name: str, shape: list[int], dtype: Any) -> Any:
    node = ops.parameter(shape, dtype)
    node.set_friendly_name(name)  # the paged-attention transformation finds inputs by it
    node.output(0).set_names({name})
    return node


def result(name: str, node: Any) -> Any:
    node.output(0).set_names({name})
    return ops.result(node)
