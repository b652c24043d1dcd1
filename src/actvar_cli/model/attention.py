"""Self-attention as published: optional l2-normalised queries and keys, biases on queries and values only."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actvar_cli.model.cache import KVCache
from actvar_cli.model.config import TransformerConfig
from actvar_cli.model.products import Linear, linear

SHORT = 256
"""Sequences up to this length are attended with plain products where gradients are needed on a CPU."""


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Scaled dot-product attention with an additive ``bias``, of (R, H, l, d) each."""
    if bias is not None and q.requires_grad and q.device.type == "cpu" and q.shape[-2] <= SHORT:
        # The backward pass of torch's fused CPU kernel takes several times as long as these products.
        scores = (q * scale) @ k.transpose(-1, -2)
        return (scores + bias.to(scores.dtype)).softmax(-1, dtype=torch.float32).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


class SelfAttention(nn.Module):
    """Multi-head attention over a sequence, or over the cache of one image's scales."""

    zero_k_bias: Tensor

    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        dim = config.embed_dim
        self.index, self.num_heads, self.head_dim = index, config.num_heads, config.head_dim
        self.l2_norm = config.attn_l2_norm
        if self.l2_norm:
            self.scale = 1.0
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, self.num_heads, 1, 1), math.log(4.0)))
        else:
            self.scale = 0.25 / math.sqrt(self.head_dim)
        self.mat_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("zero_k_bias", torch.zeros(dim), persistent=False)
        self.proj = Linear(dim, dim)

    def _gain(self) -> Tensor:
        """What the normalised queries of every head are multiplied by, (H, 1)."""
        return self.scale_mul_1H11[0, :, 0].clamp_max(math.log(100.0)).exp()

    def _qkv(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (R, H, l, d) each, of ``h`` (R, l, C)."""
        bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        qkv = linear(h, self.mat_qkv.weight, bias).unflatten(-1, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.unbind(2)
        if self.l2_norm:
            # In float32 whatever the weights are: the lengths of 64 numbers would lose what their directions keep.
            q, k = F.normalize(qkv[:, :, :2].float(), dim=-1).unbind(2)
            q, k = (q * self._gain()).to(v.dtype), k.to(v.dtype)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def forward(
        self, h: Tensor, *, bias: Tensor | None = None, cache: KVCache | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """Attention of ``h`` (R, l, C), in the type of the weights.

        With ``bias`` (1, 1, l, l): over the sequence itself, for teacher forcing. With ``cache``: over all scales so
        far. With ``keep`` (R, l) too: keys and values of all tokens, queries only of those kept; returns (N, C) in the
        order of ``keep.nonzero()``, else (R, l, C).
        """
        h = h.to(self.mat_qkv.weight.dtype)
        if cache is None or keep is None:
            q, k, v = self._qkv(h)
            if cache is not None:
                k, v = cache.extend(self.index, k, v)
            out = _attend(q, k, v, bias, self.scale)
            return self.proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
        return self._kept(h, cache, keep)

    def _kept(self, h: Tensor, cache: KVCache, keep: Tensor) -> Tensor:
        dim = h.shape[-1]
        weight = self.mat_qkv.weight
        kv = linear(h, weight[dim:], torch.cat((self.zero_k_bias, self.v_bias)))
        k, v = kv.unflatten(-1, (2, self.num_heads, self.head_dim)).unbind(2)
        if self.l2_norm:
            k = F.normalize(k.float(), dim=-1)
        keys, values = cache.extend(self.index, k.transpose(1, 2), v.transpose(1, 2))
        kept = keep.flatten().nonzero().squeeze(1)
        q = F.linear(h.flatten(0, 1).index_select(0, kept), weight[:dim], self.q_bias).unflatten(
            -1, (self.num_heads, self.head_dim)
        )
        if self.l2_norm:
            q = (F.normalize(q.float(), dim=-1) * self._gain()).to(v.dtype)
        # Rows that keep equally many tokens are attended together: no padding, so nothing is computed in vain.
        counts = keep.sum(1)
        first = counts.cumsum(0) - counts
        out = torch.empty_like(q)
        for count in counts.unique().tolist():
            if count == 0:
                continue
            rows = (counts == count).nonzero().squeeze(1)
            index = first[rows, None] + torch.arange(count, device=h.device)
            part = F.scaled_dot_product_attention(q[index].transpose(1, 2), keys[rows], values[rows], scale=self.scale)
            out[index] = part.transpose(1, 2)
        return self.proj(out.flatten(1))  # type: ignore[no-any-return]
