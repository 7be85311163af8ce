"""OpenAI's networks in PyTorch, computed from the names of a state dict alone.

Written for these tests from what the state dicts mean; it agrees with the goldens of the reference
(`test_openai.py`). Of float64 tensors it computes in float64.
"""

import math

import torch
import torch.nn.functional as F


class Peer:
    """A U-Net or a noisy classifier."""

    def __init__(self, tensors, *, blocks, heads=1, heads_up=0, head_channels=0, by_head=True):
        """Take the tensors of a state dict, and what it does not tell: see `models.trunk`."""
        self.tensors, self.per_level = tensors, blocks + 1
        self.heads, self.heads_up, self.head_channels = heads, heads_up or heads, head_channels
        self.by_head = by_head

    def unet(self, x, t, y=None, low_res=None):
        if low_res is not None:
            low_res = F.interpolate(low_res, x.shape[2:], mode="bilinear")
            x = torch.cat([x, low_res], dim=1)
        embedded = self.embed(t)
        if y is not None:
            embedded = embedded + self.tensors["label_emb.weight"][y]
        skips = self.down(x, embedded)
        h = self.middle(skips[-1], embedded)
        count = len(skips)
        for n in range(count):
            h = torch.cat([h, skips.pop()], dim=1)
            h = self.block(f"output_blocks.{n}.0", h, embedded)
            part = 1
            if self.has(f"output_blocks.{n}.{part}.qkv"):
                h = self.attention(f"output_blocks.{n}.{part}", h, self.heads_up)
                part += 1
            if (n + 1) % self.per_level == 0 and n + 1 < count:
                h = self.enlarge(f"output_blocks.{n}.{part}", h, embedded)
        return self.conv("out.2", F.silu(self.norm("out.0", h)))

    def classifier(self, x, t):
        embedded = self.embed(t)
        h = self.middle(self.down(x, embedded)[-1], embedded)
        h = F.silu(self.norm("out.0", h))
        if self.has("out.3"):
            return self.conv("out.3", h.mean((2, 3), keepdim=True))[:, :, 0, 0]
        tokens = h.flatten(2)
        tokens = torch.cat([tokens.mean(2, keepdim=True), tokens], dim=2)
        tokens = tokens + self.tensors["out.2.positional_embedding"]
        qkv = self.conv("out.2.qkv_proj", tokens)
        pooled = attend(*qkv.chunk(3, dim=1), self.count(tokens, self.heads))
        return self.conv("out.2.c_proj", pooled)[:, :, 0]

    def embed(self, t):
        first = self.tensors["time_embed.0.weight"]
        half = first.shape[1] // 2
        waves = torch.exp(-math.log(10000) * torch.arange(half, dtype=first.dtype) / half)
        angles = t[:, None].to(first.dtype) * waves
        embedded = torch.cat([angles.cos(), angles.sin()], dim=1)
        embedded = F.silu(self.linear("time_embed.0", embedded))
        return self.linear("time_embed.2", embedded)

    def down(self, x, embedded):
        results = [self.conv("input_blocks.0.0", x)]
        indices = [int(name.split(".")[1]) for name in self.tensors if name.startswith("input_")]
        for n in range(1, max(indices) + 1):
            name, h = f"input_blocks.{n}", results[-1]
            if n % self.per_level == 0:
                h = self.shrink(f"{name}.0", h, embedded)
            else:
                h = self.block(f"{name}.0", h, embedded)
                if self.has(f"{name}.1.qkv"):
                    h = self.attention(f"{name}.1", h, self.heads)
            results.append(h)
        return results

    def middle(self, h, embedded):
        h = self.block("middle_block.0", h, embedded)
        h = self.attention("middle_block.1", h, self.heads)
        return self.block("middle_block.2", h, embedded)

    def shrink(self, name, h, embedded):
        if self.has(f"{name}.op"):
            return self.conv(f"{name}.op", h, stride=2)
        pool = torch.nn.AvgPool2d(2)
        return self.block(name, h, embedded, pool) if self.has(f"{name}.in_layers.0") else pool(h)

    def enlarge(self, name, h, embedded):
        repeat = torch.nn.Upsample(scale_factor=2, mode="nearest")
        if self.has(f"{name}.conv"):
            return self.conv(f"{name}.conv", repeat(h))
        if self.has(f"{name}.in_layers.0"):
            return self.block(name, h, embedded, repeat)
        return repeat(h)

    def block(self, name, x, embedded, resample=lambda h: h):
        h = self.conv(f"{name}.in_layers.2", resample(F.silu(self.norm(f"{name}.in_layers.0", x))))
        scale_shift = self.linear(f"{name}.emb_layers.1", F.silu(embedded))[:, :, None, None]
        if scale_shift.shape[1] == 2 * h.shape[1]:
            scale, shift = scale_shift.chunk(2, dim=1)
            h = self.norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = self.norm(f"{name}.out_layers.0", h + scale_shift)
        h = self.conv(f"{name}.out_layers.3", F.silu(h))
        x = resample(x)
        if self.has(f"{name}.skip_connection"):
            x = self.conv(f"{name}.skip_connection", x)
        return x + h

    def attention(self, name, x, heads):
        tokens = self.norm(f"{name}.norm", x).flatten(2)
        qkv, heads = self.conv(f"{name}.qkv", tokens), self.count(tokens, heads)
        if self.by_head:
            parts = qkv.unflatten(1, (heads, 3, -1)).transpose(1, 2).flatten(2, 3).unbind(1)
        else:
            parts = qkv.chunk(3, dim=1)
        return x + self.conv(f"{name}.proj_out", attend(*parts, heads)).unflatten(2, x.shape[2:])

    def count(self, tokens, heads):
        return tokens.shape[1] // self.head_channels if self.head_channels else heads

    def has(self, module):
        return f"{module}.weight" in self.tensors

    def weights(self, module):
        return self.tensors[f"{module}.weight"], self.tensors[f"{module}.bias"]

    def norm(self, module, h):
        return F.group_norm(h, 32, *self.weights(module), eps=1e-5)

    def linear(self, module, h):
        return F.linear(h, *self.weights(module))

    def conv(self, module, h, stride=1):
        weight, bias = self.weights(module)
        convolve = F.conv1d if weight.ndim == 3 else F.conv2d
        return convolve(h, weight, bias, stride=stride, padding=weight.shape[-1] // 2)


def attend(q, k, v, heads):
    """softmax(q k^T / sqrt(D)) v of each head, all [B, C, L]."""
    q, k, v = (part.unflatten(1, (heads, -1)).transpose(2, 3) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(1, 2)
