"""The U-Net and the Diffusion Transformer in plain PyTorch, for machines without diffusers.

Their tensors have the names and layouts of diffusers' `UNet2DModel` and `DiTTransformer2DModel`, so
that a state dict fits both, and they compute the same function: tests/benchmarks compares them. Of
the U-Net there is what DDPM's has. Both return an `Output`, as diffusers' return an object.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS, EPSILON = 32, 1e-6
WAVES = 256  # of the Transformer's embedding of the time
MLP_RATIO = 4


class Output(NamedTuple):
    sample: Tensor


def sines_and_cosines(t: Tensor, features: int) -> tuple[Tensor, Tensor]:
    """sin(t w_i) and cos(t w_i), w_i = 10000^(-i / (n - 1)), for i < n = features / 2."""
    half = features // 2
    i = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(-math.log(10000.0) / (half - 1) * i)[None, :]
    return angles.sin(), angles.cos()


def attend(q_BxLxC: Tensor, k_BxLxC: Tensor, v_BxLxC: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(D)) v by PyTorch's fused attention, [B, L, C]."""
    B, L, C = q_BxLxC.shape
    q, k, v = (x.view(B, L, heads, C // heads).transpose(1, 2) for x in (q_BxLxC, k_BxLxC, v_BxLxC))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, L, C)


class TimeEmbedding(nn.Module):
    def __init__(self, waves: int, features: int):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(waves, features), nn.Linear(features, features)

    def forward(self, waves: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(waves)))


class SelfAttention(nn.Module):
    """Linear maps to q, k, v and from what was attended to."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(attend(self.to_q(x), self.to_k(x), self.to_v(x), self.heads))


class PixelAttention(SelfAttention):
    def __init__(self, channels: int):
        super().__init__(channels, heads=1)
        self.group_norm = nn.GroupNorm(GROUPS, channels, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        return x + super().forward(tokens).transpose(1, 2).reshape(x.shape)


class ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, time_features: int, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(GROUPS, n, EPSILON) for n in (inputs, outputs))
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_features, outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution, each with its attention or none, and the change to the next."""

    def __init__(self, blocks: Sequence[ResBlock], attentions: Sequence[nn.Module]):
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList(blocks), nn.ModuleList(attentions)
        self.downsamplers = self.upsamplers = ()

    def apply_block(self, i: int, h: Tensor, temb: Tensor) -> Tensor:
        h = self.resnets[i](h, temb)
        return self.attentions[i](h) if self.attentions else h


class UNetPort(nn.Module):
    def __init__(
        self,
        *,
        channels: Sequence[int],
        attends: Sequence[bool],
        layers_per_block: int,
        image_channels: int,
        dropout: float,
    ):
        super().__init__()
        first, last, time_features = channels[0], channels[-1], 4 * channels[0]
        self.waves = first
        self.time_embedding = TimeEmbedding(first, time_features)
        self.conv_in = nn.Conv2d(image_channels, first, 3, padding=1)

        def level(inputs: Sequence[int], outputs: int, attention: bool) -> Level:
            blocks = [ResBlock(n, outputs, time_features, dropout) for n in inputs]
            return Level(blocks, [PixelAttention(outputs) for _ in inputs] if attention else [])

        down, skips, width = [], [first], first
        for i, outputs in enumerate(channels):
            down.append(level([width] + [outputs] * (layers_per_block - 1), outputs, attends[i]))
            skips += [outputs] * layers_per_block
            if i < len(channels) - 1:
                down[-1].downsamplers = nn.ModuleList([Downsample(outputs)])
                skips.append(outputs)
            width = outputs
        self.down_blocks = nn.ModuleList(down)
        self.mid_block = level([last, last], last, False)
        self.mid_block.attentions = nn.ModuleList([PixelAttention(last)])

        up = []
        for i, outputs in reversed(list(enumerate(channels))):
            inputs = []
            for _ in range(layers_per_block + 1):
                inputs.append(width + skips.pop())
                width = outputs
            up.append(level(inputs, outputs, attends[i]))
            if i:
                up[-1].upsamplers = nn.ModuleList([Upsample(outputs)])
        self.up_blocks = nn.ModuleList(up)
        self.conv_norm_out = nn.GroupNorm(GROUPS, first, EPSILON)
        self.conv_out = nn.Conv2d(first, image_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Output:
        """Maps images [B, C, H, W] and times [B] to an image."""
        temb = self.time_embedding(torch.cat(sines_and_cosines(t, self.waves), dim=-1))
        h = self.conv_in(x)
        skips = [h]
        for level in self.down_blocks:
            for i in range(len(level.resnets)):
                h = level.apply_block(i, h, temb)
                skips.append(h)
            for downsample in level.downsamplers:
                h = downsample(h)
                skips.append(h)
        first, second = self.mid_block.resnets
        h = second(self.mid_block.attentions[0](first(h, temb)), temb)
        for level in self.up_blocks:
            for i in range(len(level.resnets)):
                h = level.apply_block(i, torch.cat([h, skips.pop()], dim=1), temb)
            for upsample in level.upsamplers:
                h = upsample(h)
        return Output(self.conv_out(F.silu(self.conv_norm_out(h))))


class ClassEmbedder(nn.Module):
    def __init__(self, num_classes: int, features: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, features)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


class TimeAndClass(nn.Module):
    """The embedding of a time and of a label, summed."""

    def __init__(self, num_classes: int, features: int):
        super().__init__()
        self.timestep_embedder = TimeEmbedding(WAVES, features)
        self.class_embedder = ClassEmbedder(num_classes, features)

    def forward(self, t: Tensor, labels: Tensor) -> Tensor:
        sines, cosines = sines_and_cosines(t, WAVES)
        times = self.timestep_embedder(torch.cat([cosines, sines], dim=-1))
        return times + self.class_embedder(labels)


class Modulation(nn.Module):
    """A block's six shifts, scales and gates, from an embedding that all blocks hold and share."""

    def __init__(self, embedding: TimeAndClass, features: int):
        super().__init__()
        self.emb, self.linear = embedding, nn.Linear(features, 6 * features)


class Perceptron(nn.Module):
    def __init__(self, features: int):
        super().__init__()
        inner = nn.Module()
        inner.proj = nn.Linear(features, MLP_RATIO * features)
        self.net = nn.ModuleList([inner, nn.Identity(), nn.Linear(MLP_RATIO * features, features)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](F.gelu(self.net[0].proj(x), approximate="tanh"))


def normalize(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON)


class DiTPortBlock(nn.Module):
    def __init__(self, embedding: TimeAndClass, features: int, heads: int):
        super().__init__()
        self.norm1 = Modulation(embedding, features)
        self.attn1, self.ff = SelfAttention(features, heads), Perceptron(features)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shifts_scales_gates = self.norm1.linear(c)[:, None, :].chunk(6, dim=-1)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = shifts_scales_gates
        x = x + gate_1 * self.attn1(normalize(x) * (1 + scale_1) + shift_1)
        return x + gate_2 * self.ff(normalize(x) * (1 + scale_2) + shift_2)


class Patches(nn.Module):
    def __init__(self, channels: int, features: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, features, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


def positions(side: int, features: int) -> Tensor:
    """The fixed embedding of a square's patches, row by row: of the column, then of the row."""
    n = features // 4
    frequencies = 10000.0 ** (-torch.arange(n, dtype=torch.float64) / n)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies[None, :]
    places = torch.cat([angles.sin(), angles.cos()], dim=-1)
    columns, rows = places[None].expand(side, -1, -1), places[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=-1).reshape(side * side, features).float()


class DiTPort(nn.Module):
    def __init__(
        self,
        *,
        image_size: int,
        image_channels: int,
        patch_size: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        num_classes: int,
        out_channels: int,
    ):
        super().__init__()
        self.patch_size, self.side = patch_size, image_size // patch_size
        self.pos_embed = Patches(image_channels, hidden_size, patch_size)
        self.register_buffer("places", positions(self.side, hidden_size), persistent=False)
        embedding = TimeAndClass(num_classes, hidden_size)
        self.transformer_blocks = nn.ModuleList(
            DiTPortBlock(embedding, hidden_size, num_heads) for _ in range(depth)
        )
        self.proj_out_1 = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj_out_2 = nn.Linear(hidden_size, patch_size**2 * out_channels)

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> Output:
        """Maps images [B, C, H, W], times [B] and labels [B] to an image."""
        h = self.pos_embed(x) + self.places[None]
        c = F.silu(self.transformer_blocks[0].norm1.emb(t, class_labels))
        for block in self.transformer_blocks:
            h = block(h, c)
        shift, scale = self.proj_out_1(c)[:, None, :].chunk(2, dim=-1)
        h = self.proj_out_2(normalize(h) * (1 + scale) + shift)
        p, side = self.patch_size, self.side
        h = h.view(len(x), side, side, p, p, -1).permute(0, 5, 1, 3, 2, 4)
        return Output(h.reshape(len(x), -1, side * p, side * p))
