"""The network of `peek`: Qwen2-VL's architecture, written for training batches of equal pictures.

Module names follow the Hugging Face checkpoint (`visual.…`, `model.…`), so that exporting is copying.
Two things differ from the reference on purpose, and the export undoes them: a still picture fills
both temporal halves of a patch, so one half of the patch embedding is trained with twice its weight;
and the dense heads that teach the vision tower are thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.peek.draw import READ_PER_TOKEN
from training.peek.tokens import VOCABULARY
from training.peek.world import CELLS, CHARACTERS, COLOURS, DIRECTIONS, SHAPES

# 7.6 million parameters: as safetensors, fp16 IR and int8 IR they are five bytes each, and all of it ships below 40 MB.
# Telling thirty fonts apart asks for width in the tower, binding a colour to a shape for depth in the language model.
PATCH: Final = 14
MERGE: Final = 2
VISION_DIM: Final = 256
VISION_HEADS: Final = 4
VISION_DEPTH: Final = 4
VISION_THETA: Final = 10_000.0
HIDDEN: Final = 256
HEADS: Final = 4
KV_HEADS: Final = 2
HEAD_DIM: Final = 64
LAYERS: Final = 5
INTERMEDIATE: Final = 416
MROPE_SECTION: Final = (8, 12, 12)
ROPE_THETA: Final = 100.0
"""Low, because M-RoPE gives rows and columns the slow frequencies: at 10,000 the column of a token
would turn its slowest half by less than 0.04 rad across a whole picture."""

MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
STD: Final = (0.26862954, 0.26130258, 0.27577711)

AUXILIARY: Final[Mapping[str, int]] = {
    "shape": len(SHAPES) + 1,
    "colour": len(COLOURS),
    "direction": len(DIRECTIONS),
    "cell": len(CELLS),
    "background": len(COLOURS),
    "place": len(CELLS),
    "row": 16,
    "column": 16,
    "under": len(CHARACTERS) + 1,
    **{f"read_{place}": len(CHARACTERS) + 1 for place in range(1, READ_PER_TOKEN + 1)},
}


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Fused on a GPU; written out on a CPU, where that is five times faster for sequences this short."""
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores if mask is None else scores + mask).softmax(-1).to(v.dtype) @ v


class VisionAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(VISION_DIM, 3 * VISION_DIM)
        self.proj = nn.Linear(VISION_DIM, VISION_DIM)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, VISION_HEADS, -1).permute(2, 0, 3, 1, 4)
        cos, sin = cos.to(v.dtype), sin.to(v.dtype)
        out = _attend(_rotate(q, cos, sin), _rotate(k, cos, sin), v)
        return self.proj(out.transpose(1, 2).reshape(batch, length, VISION_DIM))


class VisionMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(VISION_DIM, 4 * VISION_DIM)
        self.fc2 = nn.Linear(4 * VISION_DIM, VISION_DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(1.702 * self.fc1(x)) / 1.702)  # quick_gelu, in fewer passes


class VisionBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(VISION_DIM, eps=1e-6)
        self.norm2 = nn.LayerNorm(VISION_DIM, eps=1e-6)
        self.attn = VisionAttention()
        self.mlp = VisionMLP()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """`proj` holds the sum of both temporal halves of the reference's convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(3 * PATCH * PATCH, VISION_DIM, bias=False)


class PatchMerger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        wide = VISION_DIM * MERGE**2
        self.ln_q = nn.LayerNorm(VISION_DIM, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.ln_q(x).reshape(x.shape[0], -1, VISION_DIM * MERGE**2))


class Vision(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed()
        self.blocks = nn.ModuleList(VisionBlock() for _ in range(VISION_DEPTH))
        self.merger = PatchMerger()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 1, 1, 3) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 1, 1, 3) * 255, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [pictures, height, width, 3] -> [pictures, tokens, hidden]."""
        batch, height, width, _ = pixels.shape
        rows, columns = height // PATCH, width // PATCH
        x = (pixels.float() - self.mean) / self.std
        x = x.view(batch, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3)
        x = x.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(batch, rows * columns, -1)
        cos, sin = _vision_rotary(rows, columns, x.device)
        x = self.patch_embed.proj(x)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.merger(x)


def _vision_rotary(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Angles by row and column of every patch, in the order of 2x2 merge blocks."""
    grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1)
    grid = grid.view(rows // MERGE, MERGE, columns // MERGE, MERGE, 2).transpose(1, 2).reshape(-1, 2)
    quarter = VISION_DIM // VISION_HEADS // 4
    frequencies = VISION_THETA ** (-torch.arange(quarter) / quarter)
    angles = (grid[:, :, None].float() * frequencies).flatten(1)
    angles = torch.cat((angles, angles), -1).to(device)
    return angles.cos(), angles.sin()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HEADS * HEAD_DIM)
        self.k_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM)
        self.v_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM)
        self.o_proj = nn.Linear(HEADS * HEAD_DIM, HIDDEN, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, HEADS, HEAD_DIM).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, KV_HEADS, HEAD_DIM).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, KV_HEADS, HEAD_DIM).transpose(1, 2)
        cos, sin = cos.to(v.dtype), sin.to(v.dtype)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, 1) for t in (k, v))
        out = _attend(q, k, v, mask.to(v.dtype))
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, HEADS * HEAD_DIM))


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN, INTERMEDIATE, bias=False)
        self.up_proj = nn.Linear(HIDDEN, INTERMEDIATE, bias=False)
        self.down_proj = nn.Linear(INTERMEDIATE, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.mlp = MLP()
        self.input_layernorm = nn.RMSNorm(HIDDEN, eps=1e-6)
        self.post_attention_layernorm = nn.RMSNorm(HIDDEN, eps=1e-6)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(HIDDEN, eps=1e-6)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """x [rows, length, hidden], positions [rows, 3, length], additive mask [rows, 1, length, length]."""
        half = HEAD_DIM // 2
        frequencies = ROPE_THETA ** (-torch.arange(half, device=x.device) / half)
        axis = torch.repeat_interleave(torch.arange(3), torch.tensor(MROPE_SECTION)).to(x.device)
        angles = positions[:, axis].transpose(1, 2).float() * frequencies
        angles = torch.cat((angles, angles), -1)[:, None]
        cos, sin = angles.cos(), angles.sin()
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return self.norm(x)


class Peek(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = Vision()
        self.model = Language()
        self.auxiliary = nn.Linear(HIDDEN, sum(AUXILIARY.values()))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.model.embed_tokens.weight, std=0.05)
        for block in [*self.visual.blocks, *self.model.layers]:  # a block starts as a small change
            for name, weight in block.named_parameters():
                if name in ("attn.proj.weight", "mlp.fc2.weight", "self_attn.o_proj.weight", "mlp.down_proj.weight"):
                    nn.init.normal_(weight, std=0.3 * weight.shape[1] ** -0.5)

    def look(self, groups: list[Tensor]) -> Tensor:
        """Groups of equal pictures -> all their vision tokens in a row, [tokens, hidden]."""
        return torch.cat([self.visual(pixels).flatten(0, 1) for pixels in groups])

    def dense(self, features: Tensor) -> dict[str, Tensor]:
        """What the auxiliary heads read from each vision token."""
        parts = self.auxiliary(features).split(list(AUXILIARY.values()), dim=-1)
        return dict(zip(AUXILIARY, parts, strict=True))

    def answer(self, features: Tensor, ids: Tensor, source: Tensor, positions: Tensor, segments: Tensor) -> Tensor:
        """Hidden states [rows, length, hidden]. `source` is the vision token that fills a place, or -1."""
        x = self.model.embed_tokens(ids)
        x = torch.where((source >= 0)[..., None], features[source.clamp(min=0)].to(x.dtype), x)
        return self.model(x, positions, block_mask(segments))

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.model.embed_tokens.weight)


def block_mask(segments: Tensor) -> Tensor:
    """Additive mask: causal, and a question (segment > 0) sees only what is shared (0) and itself."""
    length = segments.shape[1]
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    allowed = ((key == 0) | (key == query)) & causal
    mask = torch.zeros(allowed.shape, device=segments.device).masked_fill_(~allowed, float("-inf"))
    return mask[:, None]
