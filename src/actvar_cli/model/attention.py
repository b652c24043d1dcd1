"""Self-attention as published: optional l2-normalised queries and keys, biases on queries and values only."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actvar_cli.model.cache import KVCache
from actvar_cli.model.config import TransformerConfig
from actvar_cli.model.counters import is_exact
from actvar_cli.model.places import Places, Uneven
from actvar_cli.model.products import Linear, fitted, linear

if TYPE_CHECKING:
    from actvar_cli.model.kernels.tiles import Tiles

SHORT = 256
"""Sequences up to this length are attended with plain products where gradients are needed on a CPU."""

LONGEST = math.log(100.0)
"""The logarithm of the most that normalised queries are multiplied by."""

Fill = Callable[[Tensor], Tensor]
"""What makes the keys and values (R, l, 2C) of all tokens from those (…, 2C) of the computed ones."""

SPARE = 32
"""Queries that a row may be filled up with: attending them takes as long as copying the row's keys and values."""


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
        return self.scale_mul_1H11[0, :, 0].clamp_max(LONGEST).exp()

    def _queries(self, q: Tensor) -> Tensor:
        """``q`` (…, H, d) at the length that its head wants."""
        return (q * _over_length(q, self._gain())).to(q.dtype) if self.l2_norm else q

    def _unit(self, k: Tensor) -> Tensor:
        """Keys ``k`` (…, H, d) at the length at which they are attended."""
        return (k * _over_length(k)).to(k.dtype) if self.l2_norm else k

    def forward(
        self,
        h: Tensor,
        *,
        bias: Tensor | None = None,
        cache: KVCache | None = None,
        places: Places | None = None,
        fill: Fill | None = None,
        before: tuple[Tensor, Tensor] | None = None,
        kernels: bool = False,
        picked: Tiles | None = None,
    ) -> Tensor:
        """Attention of ``h`` (R, l, C), in the type of products with the weights.

        With ``bias`` (1, 1, l, n + l): over the sequence itself, for teacher forcing, and the keys and values (R, H, n,
        d) of what was ``before`` it, if anything, as `as_cached` has them. With ``cache``: over all scales so far. With
        ``places`` too: queries only of the tokens that are kept, returned apart; else (R, l, C). Keys and values are of
        all tokens, or are made by ``fill`` from those of the kept ones; without ``places`` it gets those of all. With
        ``kernels`` by those for GPUs, see `kernels.block.attend`.
        """
        if kernels and cache is not None:
            from actvar_cli.model.kernels.block import attend

            return attend(self, h, cache, picked, fill)
        h = fitted(h, self.mat_qkv.weight)
        if cache is not None and places is not None:
            return self._kept(h, cache, places, fill)
        q, k, v = self._project(h, fill)
        q = self._queries(q).transpose(1, 2)
        if cache is None:
            k, v = self._unit(k).transpose(1, 2), v.transpose(1, 2)
            if before:
                k, v = (torch.cat((old.to(new.dtype), new), dim=2) for old, new in zip(before, (k, v), strict=True))
            out = _attend(q, k, v, bias, self.scale)
        else:
            out = _attend(q, *self._extend(cache, k, v), None, self.scale)
        return self.proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """``x`` (…, n C) as n of (…, H, d)."""
        return x.unflatten(-1, (-1, self.num_heads, self.head_dim)).unbind(-3)  # type: ignore[no-any-return]

    def _extend(self, cache: KVCache, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values (R, H, L, d) so far, with those of this scale, (R, l, H, d)."""
        factor = _over_length(k).transpose(1, 2) if self.l2_norm else None
        return cache.extend(self.index, k.transpose(1, 2), v.transpose(1, 2), factor)

    def _project(self, h: Tensor, fill: Fill | None = None) -> tuple[Tensor, ...]:
        """Queries of ``h`` (…, C), and keys and values, of as many tokens or of those that ``fill`` makes of them."""
        dim = h.shape[-1]
        made = linear(h, self.mat_qkv.weight, torch.cat((self.q_bias, self.zero_k_bias, self.v_bias)))
        if fill is None:
            return self._heads(made)
        q, kv = made.split([dim, 2 * dim], dim=-1)
        return *self._heads(q), *self._heads(fill(kv))

    def keys_and_values(self, h: Tensor, *, constant: bool = True) -> Tensor:
        """Keys and values (…, 2C) of tokens ``h`` (…, C), or without the ``constant`` of differences between tokens."""
        bias = torch.cat((self.zero_k_bias, self.v_bias)) if constant else None
        return linear(h, self.mat_qkv.weight[h.shape[-1] :], bias)

    def as_cached(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (R, H, l, d) of tokens ``h`` (R, l, C) as a `KVCache` has them."""
        k, v = self._heads(self.keys_and_values(fitted(h, self.mat_qkv.weight)))
        return self._unit(k).transpose(1, 2), v.transpose(1, 2)

    def _project_apart(self, h: Tensor, kept: Tensor) -> tuple[Tensor, ...]:
        """Queries of the tokens ``kept`` alone, keys and values of all tokens ``h`` (R, l, C)."""
        q = linear(kept, self.mat_qkv.weight[: h.shape[-1]], self.q_bias)
        return *self._heads(q), *self._heads(self.keys_and_values(h))

    def _kept(self, h: Tensor, cache: KVCache, places: Places, fill: Fill | None) -> Tensor:
        kept = places.of_kept(h)
        q, k, v = self._project(kept, fill) if fill else self._project_apart(h, kept)
        keys, values = self._extend(cache, k, v)
        q = self._queries(q)
        if isinstance(places, Uneven):
            out = _attend_unevenly(q, keys, values, places.keep.sum(1), self.scale)
        else:
            out = _attend(q.transpose(1, 2), keys, values, None, self.scale).transpose(1, 2)
        return self.proj(out.flatten(-2))  # type: ignore[no-any-return]


def _over_length(x: Tensor, length: Tensor | float = 1.0) -> Tensor:
    """What brings each vector of ``x`` (…, d) to ``length``, (…, 1): one factor, so that ``x`` is multiplied once.

    In float32 whatever ``x`` is: the length of 64 numbers would lose what their directions keep.
    """
    found: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return length / found.clamp_min(1e-12)


def _attend_unevenly(q: Tensor, keys: Tensor, values: Tensor, counts: Tensor, scale: float) -> Tensor:
    """Attention of ``q`` (N, H, d), of which the first ``counts[0]`` belong to row 0, and so on; (N, H, d).

    ``keys`` and ``values`` are (R, H, L, d), ``counts`` (R,). Rows with about as many queries are attended together,
    filled up with queries that are not asked for; while work is counted only rows with equally many.
    """
    numbers = counts.tolist()
    if 0 < min(numbers) == max(numbers):
        even = q.unflatten(0, (len(numbers), numbers[0])).transpose(1, 2)
        return F.scaled_dot_product_attention(even, keys, values, scale=scale).transpose(1, 2).flatten(0, 1)
    first = counts.cumsum(0) - counts
    out = torch.empty_like(q)
    for group, most in _alike(numbers):
        rows = torch.tensor(group, device=q.device)
        places = torch.arange(most, device=q.device)
        index, asked = first[rows, None] + places, places < counts[rows, None]
        k, v = (keys, values) if len(group) == len(counts) else (keys[rows], values[rows])
        some = q.index_select(0, index.clamp_max(len(q) - 1).flatten()).unflatten(0, index.shape)
        part = F.scaled_dot_product_attention(some.transpose(1, 2), k, v, scale=scale)
        out[index[asked]] = part.transpose(1, 2)[asked]
    return out


def _alike(counts: list[int]) -> Iterator[tuple[list[int], int]]:
    """Groups of rows, and the most queries that one of a group has; rows without any are left out."""
    most, width = max(counts), 1
    if not is_exact():
        width = most if most * len(counts) - sum(counts) <= SPARE * len(counts) else SPARE
    groups: dict[int, list[int]] = defaultdict(list)
    for row, count in enumerate(counts):
        if count:
            groups[(count - 1) // width].append(row)
    for group in groups.values():
        yield group, max(counts[row] for row in group)
