"""Weights of a model as int8, one scale for each output channel: a quarter of f32's memory, half of fp16's.

The form is OpenVINO's own for compressed weights (`Constant i8 -> Convert -> Multiply`), which its plugins recognise
and keep compressed while they compute. Rounding is to the nearest and symmetric (absmax, with a constant for each row):
Dettmers et al., "LLM.int8()" (arXiv:2208.07339), without its treatment of outliers, because activations stay floats.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops

_SMALLEST: Final = 1024
"""Values; below that the scales and the extra arithmetic outweigh what is saved."""


def to_int8(model: ov.Model) -> int:
    """Compresses the matrices that are multiplied by and the tables that are looked up in; says how many.

    Norms, biases and convolutions stay. The model is changed in place.
    """
    compressed = 0
    for node in model.get_ordered_ops():
        found = _weight_of(node)
        if found is None:
            continue
        port, values, axis = found
        quantised, scale = quantise(values, axis)
        constant = ops.convert(ops.constant(quantised, shared_memory=False), "f32")
        node.input(port).replace_source_output(
            ops.multiply(constant, ops.constant(scale, shared_memory=False)).output(0)
        )
        compressed += 1
    model.validate_nodes_and_infer_types()
    return compressed


def quantise(values: npt.NDArray[Any], axis: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """int8 values and their scales (of size 1 along `axis`): values ~ int8 x scale, off by at most half a scale."""
    exact = values.astype(np.float32)
    largest = np.abs(exact).max(axis=axis, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(exact / scale).astype(np.int8), scale


def _weight_of(node: Any) -> tuple[int, npt.NDArray[Any], int] | None:
    """Which input of the node is a weight, its values [rows, columns], and the axis that one scale spans."""
    if node.get_type_name() == "MatMul":
        port, axis = 1, 1 if node.get_attributes()["transpose_b"] else 0
    elif node.get_type_name() == "Gather":
        port, axis = 0, 1
    else:
        return None
    source = node.input_value(port).get_node()
    if source.get_type_name() == "Convert":
        source = source.input_value(0).get_node()
    if source.get_type_name() != "Constant" or source.get_element_type() not in _FLOATS:
        return None
    values = source.data
    return (port, values, axis) if values.ndim == 2 and values.size >= _SMALLEST else None


_FLOATS: Final = (ov.Type.f32, ov.Type.f16)
