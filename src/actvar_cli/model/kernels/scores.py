"""What router and token gate decide, in one pass over the tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from actvar_cli.model.kernels.descriptors import precision, steps_ahead, tiled
from actvar_cli.model.kernels.gelu import gelu

FEW = 4096
"""Up to so many tokens what counts is how soon one program is done; with more, how often the weights are read."""


@triton.jit
def _exceed(x, w1, b1, w2, b2, out, threshold, N, C, H: tl.constexpr, HW: tl.constexpr, E: tl.constexpr, M: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip  # noqa: E501
    tile, unit = tl.program_id(0), tl.arange(0, HW)
    hidden = tl.zeros((M, HW), tl.float32)
    for k in range(0, C, K):
        hidden = tl.dot(x.load([tile * M, k]), w1.load([0, k]).T, hidden, input_precision=PRECISION)
    hidden = gelu(hidden + tl.load(b1 + unit, unit < H, other=0.0).to(tl.float32)[None, :])
    token = tile * M + tl.arange(0, M)
    for e in tl.static_range(E):
        weight = tl.load(w2 + e * H + unit, unit < H, other=0.0)
        made = tl.sum(hidden * weight[None, :], 1) + tl.load(b2 + e)
        tl.store(out + token.to(tl.int64) * E + e, (made > threshold).to(tl.uint8), token < N)


def exceed(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, threshold: float) -> Tensor:
    """Which scores (…, E) of tokens ``x`` (…, C) exceed ``threshold``: Linear (H, C), GELU, Linear (E, H).

    ``w1`` and ``b1`` are of the type of ``x``, ``w2`` and ``b2`` float32.
    """
    dim, hidden, made = x.shape[-1], len(w1), len(w2)
    rows = x.reshape(-1, dim)
    wide = max(16, triton.next_power_of_2(hidden))
    size, warps, ahead = (64, 4, 6) if len(rows) <= FEW else (128, 8, 4)
    ahead = max(1, min(ahead, steps_ahead(x, size, wide, 64)))
    out = x.new_empty(*x.shape[:-1], made, dtype=torch.bool)
    _exceed[(triton.cdiv(len(rows), size),)](
        tiled(rows, size, 64), tiled(w1, wide, 64), b1, w2, b2, out.view(torch.uint8), threshold, len(rows), dim,
        H=hidden, HW=wide, E=made, M=size, K=64, PRECISION=precision(x), num_warps=warps, num_stages=ahead,
    )  # fmt: skip
    return out
