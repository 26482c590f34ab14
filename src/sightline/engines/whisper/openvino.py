"""Whisper on OpenVINO: three graphs of our own, made from the safetensors when the model is loaded, without torch.

    encoder    mel [1, bands, frames] f32 -> for each decoder layer, keys and values of what was heard
    decoder    tokens [1, T] i64, those keys and values -> logits [1, T, vocabulary] f32; its own are kept as state
    attention  the same without state -> where chosen heads look, [heads, T, places] f32

Keys and values of what was heard are computed once a window, not once a token. Architecture: Radford et al.
(arXiv:2212.04356), and transformers' `models/whisper/modeling_whisper.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops
from openvino.op import util as op_util

from sightline.audio.mel import Mel
from sightline.engines.openvino.checkpoint import Weights
from sightline.engines.openvino.graph import constant, ints, linear, parameter, result, scalar
from sightline.engines.whisper.checkpoint import Facts, Shape
from sightline.engines.whisper.window import Decoding

_EPS: Final = 1e-5
"""Of layer norms, as in PyTorch, whose default Whisper's have."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What the decoder looks at: keys and values for each of its layers, each [1, heads, places, head width]."""

    tensors: dict[str, ov.Tensor]


class OpenVINOWhisper:
    """A `SpeechModel`."""

    def __init__(
        self, model_dir: Path, facts: Facts, *, inference_precision: str = "f32", num_threads: int = 0
    ) -> None:
        """Raises `CheckpointError` when a weight is missing, `RuntimeError` when OpenVINO cannot run the model."""
        network = _Network(Weights(model_dir, _original), facts.shape)
        core = ov.Core()
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": inference_precision, "PERFORMANCE_HINT": "LATENCY"}
        if num_threads:
            settings["INFERENCE_NUM_THREADS"] = num_threads
        self._encoder = core.compile_model(network.encoder(), "CPU", settings).create_infer_request()
        self._decoder = core.compile_model(network.decoder(), "CPU", settings).create_infer_request()
        self._attention = core.compile_model(
            network.attention(facts.alignment_heads), "CPU", settings
        ).create_infer_request()

    def encode(self, mel: Mel) -> Heard:
        self._encoder.infer({"mel": np.ascontiguousarray(mel[None])})
        # Copies: the request's own outputs are written over by the next window, perhaps of another recording.
        return Heard(
            {
                name: ov.Tensor(self._encoder.get_tensor(name).data.copy())
                for output in self._encoder.model_outputs
                for name in [output.any_name]
            }
        )

    def decoding(self, heard: Heard) -> Decoding:
        self._decoder.reset_state()
        for name, tensor in heard.tensors.items():
            self._decoder.set_tensor(name, tensor)
        return _Decoding(self._decoder)

    def attention(self, heard: Heard, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        for port in self._attention.model_inputs:
            if (name := port.any_name) in heard.tensors:
                self._attention.set_tensor(name, heard.tensors[name])
        self._attention.set_tensor("tokens", ov.Tensor(np.array([tokens], np.int64)))
        self._attention.infer()
        return np.array(self._attention.get_tensor("attention").data)


class _Decoding:
    def __init__(self, request: Any) -> None:
        self._request = request
        self._past = 0

    def step(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        positions = np.arange(self._past, self._past + len(tokens), dtype=np.int64)
        self._past += len(tokens)
        self._request.set_tensor("tokens", ov.Tensor(np.array([tokens], np.int64)))
        self._request.set_tensor("positions", ov.Tensor(positions))
        self._request.infer()
        return np.array(self._request.get_tensor("logits").data[0], np.float32)


class _Network:
    """Makes the graphs."""

    def __init__(self, weights: Weights, shape: Shape) -> None:
        self._weights = weights
        self._shape = shape

    def encoder(self) -> ov.Model:
        shape = self._shape
        mel = parameter("mel", [1, shape.bands, shape.frames], np.float32)
        x = ops.gelu(self._convolution(mel, "encoder.conv1", stride=1), "erf")
        x = ops.gelu(self._convolution(x, "encoder.conv2", stride=2), "erf")
        x = ops.transpose(x, ints([0, 2, 1]))
        x = ops.add(x, constant(self._weight("encoder.embed_positions.weight")[None]))
        for index in range(shape.encoder_layers):
            name = f"encoder.layers.{index}"
            normed = self._norm(x, f"{name}.self_attn_layer_norm")
            q, k, v = (self._heads(self._linear(normed, f"{name}.self_attn.{p}_proj")) for p in "qkv")
            attended = ops.scaled_dot_product_attention(q, k, v)
            x = ops.add(x, self._linear(_merged(attended), f"{name}.self_attn.out_proj"))
            x = self._feed_forward(x, name)
        x = self._norm(x, "encoder.layer_norm")
        outputs = []
        for index in range(shape.decoder_layers):
            for kind in "kv":
                projected = self._heads(self._linear(x, f"decoder.layers.{index}.encoder_attn.{kind}_proj"))
                outputs.append(result(_cross(kind, index), projected))
        return ov.Model(outputs, [mel], "whisper_encoder")

    def decoder(self) -> ov.Model:
        tokens = parameter("tokens", [1, -1], np.int64)
        positions = parameter("positions", [-1], np.int64)
        cross = self._cross_inputs(range(self._shape.decoder_layers))
        sinks: list[Any] = []
        x = self._embedded(tokens, positions)
        mask = None
        for index in range(self._shape.decoder_layers):
            name = f"decoder.layers.{index}"
            q, k, v = self._self_attention_inputs(x, name)
            k, v = (self._remember(new, f"{name}.{kind}", sinks) for new, kind in ((k, "key"), (v, "value")))
            if mask is None:  # a token sees those before it and itself
                total = ops.gather(ops.shape_of(k, "i64"), ints(2), ints(0))
                keys = ops.range(ints(0), total, ints(1), "i64")
                mask = ops.unsqueeze(ops.less_equal(keys, ops.unsqueeze(positions, ints(1))), ints([0, 1]))
            attended = ops.scaled_dot_product_attention(q, k, v, mask)
            x = ops.add(x, self._linear(_merged(attended), f"{name}.self_attn.out_proj"))
            q = self._cross_queries(x, name)
            attended = ops.scaled_dot_product_attention(q, cross[_cross("k", index)], cross[_cross("v", index)])
            x = ops.add(x, self._linear(_merged(attended), f"{name}.encoder_attn.out_proj"))
            x = self._feed_forward(x, name)
        x = self._norm(x, "decoder.layer_norm")
        logits = result("logits", linear(x, self._weight("decoder.embed_tokens.weight")))
        return ov.Model([logits], sinks, [tokens, positions, *cross.values()], "whisper_decoder")

    def attention(self, heads: Sequence[tuple[int, int]]) -> ov.Model:
        """Up to the highest of the layers of `heads`."""
        top = max(layer for layer, _ in heads)
        tokens = parameter("tokens", [1, -1], np.int64)
        cross = self._cross_inputs(range(top + 1))
        count = ops.gather(ops.shape_of(tokens, "i64"), ints(1), ints(0))
        x = self._embedded(tokens, ops.range(ints(0), count, ints(1), "i64"))
        looks = {}
        for index in range(top + 1):
            name = f"decoder.layers.{index}"
            attended = ops.scaled_dot_product_attention(*self._self_attention_inputs(x, name), causal=True)
            x = ops.add(x, self._linear(_merged(attended), f"{name}.self_attn.out_proj"))
            scaled = ops.multiply(self._cross_queries(x, name), scalar(self._shape.head_width**-0.5))
            weights = ops.softmax(ops.matmul(scaled, cross[_cross("k", index)], False, True), -1)
            looks[index] = ops.squeeze(weights, ints(0))
            x = ops.add(
                x,
                self._linear(
                    _merged(ops.matmul(weights, cross[_cross("v", index)], False, False)),
                    f"{name}.encoder_attn.out_proj",
                ),
            )
            x = self._feed_forward(x, name)
        chosen = [ops.gather(looks[layer], ints([head]), ints(0)) for layer, head in heads]
        inputs = [tokens, *cross.values()]
        # The highest layer's values are made but not looked at; a graph may not have an input that nothing reads.
        inputs = [node for node in inputs if node.output(0).get_target_inputs()]
        return ov.Model([result("attention", ops.concat(chosen, 0))], inputs, "whisper_attention")

    # --- parts -------------------------------------------------------------------------------------------------------

    def _embedded(self, tokens: Any, positions: Any) -> Any:
        said = ops.gather(constant(self._weight("decoder.embed_tokens.weight")), tokens, ints(0))
        return ops.add(said, ops.gather(constant(self._weight("decoder.embed_positions.weight")), positions, ints(0)))

    def _self_attention_inputs(self, x: Any, name: str) -> tuple[Any, Any, Any]:
        normed = self._norm(x, f"{name}.self_attn_layer_norm")
        q, k, v = (self._heads(self._linear(normed, f"{name}.self_attn.{p}_proj")) for p in "qkv")
        return q, k, v

    def _cross_queries(self, x: Any, name: str) -> Any:
        return self._heads(
            self._linear(self._norm(x, f"{name}.encoder_attn_layer_norm"), f"{name}.encoder_attn.q_proj")
        )

    def _cross_inputs(self, layers: Sequence[int]) -> dict[str, Any]:
        shape = [1, self._shape.heads, self._shape.source_positions, self._shape.head_width]
        names = [_cross(kind, layer) for layer in layers for kind in "kv"]
        return {name: parameter(name, shape, np.float32) for name in names}

    def _remember(self, new: Any, variable: str, sinks: list[Any]) -> Any:
        """Past and new keys (or values), kept as state."""
        info = op_util.VariableInfo()
        info.data_shape = ov.PartialShape([1, self._shape.heads, -1, self._shape.head_width])
        info.data_type = ov.Type.f32
        info.variable_id = variable
        state = op_util.Variable(info)
        empty = ops.constant(np.zeros((1, self._shape.heads, 0, self._shape.head_width), np.float32))
        whole = ops.concat([ops.read_value(empty, state), new], axis=2)
        sinks.append(ops.assign(whole, state))
        return whole

    def _feed_forward(self, x: Any, name: str) -> Any:
        wide = ops.gelu(self._linear(self._norm(x, f"{name}.final_layer_norm"), f"{name}.fc1"), "erf")
        return ops.add(x, self._linear(wide, f"{name}.fc2"))

    def _norm(self, x: Any, name: str) -> Any:
        normed = ops.mvn(x, ints([-1]), True, _EPS, "INSIDE_SQRT")
        scaled = ops.multiply(normed, constant(self._weight(f"{name}.weight")))
        return ops.add(scaled, constant(self._weight(f"{name}.bias")))

    def _linear(self, x: Any, name: str) -> Any:
        product = linear(x, self._weight(f"{name}.weight"))
        if name.endswith(".k_proj"):  # Whisper's have no bias
            return product
        return ops.add(product, constant(self._weight(f"{name}.bias")))

    def _convolution(self, x: Any, name: str, *, stride: int) -> Any:
        convolved = ops.convolution(x, constant(self._weight(f"{name}.weight")), [stride], [1], [1], [1])
        return ops.add(convolved, constant(self._weight(f"{name}.bias").reshape(1, -1, 1)))

    def _heads(self, x: Any) -> Any:
        """[1, T, width] to [1, heads, T, head width]."""
        split = ops.reshape(x, ints([0, 0, self._shape.heads, self._shape.head_width]), special_zero=True)
        return ops.transpose(split, ints([0, 2, 1, 3]))

    def _weight(self, name: str) -> npt.NDArray[Any]:
        return self._weights.weight(name)


def _merged(x: Any) -> Any:
    """[1, heads, T, head width] to [1, T, width]."""
    return ops.reshape(ops.transpose(x, ints([0, 2, 1, 3])), ints([0, 0, -1]), special_zero=True)


def _cross(kind: str, layer: int) -> str:
    return f"cross_{ {'k': 'key', 'v': 'value'}[kind] }.{layer}"


def _original(name: str) -> str:
    return name.removeprefix("model.")
