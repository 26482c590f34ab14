"""The model, with the parameter names of transformers' `WhisperForConditionalGeneration`.

Radford et al. (arXiv:2212.04356), section 2.2: two convolutions, a transformer over half the frames, a decoder that
looks at it. What differs from transformers' own: windows may be shorter than the longest, which makes most of the
training five times as fast; and `frames`, a head that is only there while it learns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GUIDED_HEADS = 2
"""Of each of the decoder's layers, the first: they are shown where to look (see `train.look_loss`)."""


@dataclass(frozen=True, slots=True)
class Size:
    vocabulary: int
    bands: int = 80
    width: int = 128
    heads: int = 4
    encoder_layers: int = 4
    decoder_layers: int = 2
    source_positions: int = 500
    target_positions: int = 128
    frame_classes: int = 41


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def looks(self, x: Tensor, memory: Tensor, heads: int) -> Tensor:
        """Where its first heads look, as logarithms: [batch, heads, tokens, places]."""
        q, k = (self._split(p)[:, :heads] for p in (self.q_proj(x), self.k_proj(memory)))
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).log_softmax(-1)

    def forward(self, x: Tensor, memory: Tensor, causal: bool = False) -> Tensor:
        q, k, v = (self._split(p) for p in (self.q_proj(x), self.k_proj(memory), self.v_proj(memory)))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class EncoderLayer(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.self_attn = Attention(size.width, size.heads)
        self.self_attn_layer_norm = nn.LayerNorm(size.width)
        self.fc1 = nn.Linear(size.width, 4 * size.width)
        self.fc2 = nn.Linear(4 * size.width, size.width)
        self.final_layer_norm = nn.LayerNorm(size.width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.self_attn_layer_norm(x)
        x = x + self.self_attn(normed, normed)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class DecoderLayer(EncoderLayer):
    def __init__(self, size: Size) -> None:
        super().__init__(size)
        self.encoder_attn = Attention(size.width, size.heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(size.width)

    def guided(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.self_attn_layer_norm(x)
        x = x + self.self_attn(normed, normed, causal=True)
        normed = self.encoder_attn_layer_norm(x)
        look = self.encoder_attn.looks(normed, memory, GUIDED_HEADS)
        x = x + self.encoder_attn(normed, memory)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x)))), look


class Encoder(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(size.bands, size.width, 3, padding=1)
        self.conv2 = nn.Conv1d(size.width, size.width, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(size.source_positions, size.width)
        self.embed_positions.weight = nn.Parameter(sinusoids(size.source_positions, size.width), requires_grad=False)
        self.layers = nn.ModuleList(EncoderLayer(size) for _ in range(size.encoder_layers))
        self.layer_norm = nn.LayerNorm(size.width)

    def forward(self, mel: Tensor) -> Tensor:
        """Mel [batch, bands, frames] to [batch, frames / 2, width]."""
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        x = x + self.embed_positions.weight[: x.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.layer_norm(x)


class Decoder(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(size.vocabulary, size.width)
        self.embed_positions = nn.Embedding(size.target_positions, size.width)
        self.layers = nn.ModuleList(DecoderLayer(size) for _ in range(size.decoder_layers))
        self.layer_norm = nn.LayerNorm(size.width)

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """Token ids [batch, tokens] to logits [batch, tokens, vocabulary]."""
        return self.guided(tokens, memory)[0]

    def guided(self, tokens: Tensor, memory: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The logits, and for each layer where its guided heads look."""
        x = self.embed_tokens(tokens) + self.embed_positions.weight[: tokens.shape[1]]
        looks = []
        for layer in self.layers:
            x, look = layer.guided(x, memory)
            looks.append(look)
        return self.layer_norm(x) @ self.embed_tokens.weight.T, looks


class Whisper(nn.Module):
    def __init__(self, size: Size, first_timestamp: int) -> None:
        super().__init__()
        self.size = size
        self.model = nn.ModuleDict({"encoder": Encoder(size), "decoder": Decoder(size)})
        self.frames = nn.Linear(size.width, size.frame_classes)
        """What is being said at each 20 ms: tells the encoder early what to listen for."""
        self.apply(_initialise)
        # Moments begin as what the encoder marks them with, so that what is learnt of one is learnt of its neighbours.
        encoder, decoder = self.model["encoder"], self.model["decoder"]
        with torch.no_grad():
            encoder.embed_positions.weight.copy_(sinusoids(size.source_positions, size.width))
            count = size.vocabulary - first_timestamp
            decoder.embed_tokens.weight[first_timestamp:] += 0.05 * sinusoids(count, size.width)

    @property
    def encoder(self) -> Encoder:
        return self.model["encoder"]  # type: ignore[return-value]

    @property
    def decoder(self) -> Decoder:
        return self.model["decoder"]  # type: ignore[return-value]


def sinusoids(length: int, width: int) -> Tensor:
    """Shape [length, width]: sines, then cosines, of wavelengths from 2 pi to 10,000 times that."""
    step = math.log(10_000) / (width // 2 - 1)
    angles = torch.arange(length)[:, None] * torch.exp(-step * torch.arange(width // 2))[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.05)
