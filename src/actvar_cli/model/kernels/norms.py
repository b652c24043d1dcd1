"""AdaLN and the sum before it in one pass over the tokens; heads normalised on their way to attention and cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from actvar_cli.model.attention import LONGEST


@triton.jit
def _adaln(x, gain, by_gain, update, keep, other, stand_in, scale, shift, by_scale, total, out, tokens, eps, C: tl.constexpr, W: tl.constexpr, SUM: tl.constexpr, PICK: tl.constexpr):  # fmt: skip  # noqa: E501
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, W)
    inside = at < C
    row = token // tokens
    here = token * C + at
    kept = True
    if PICK:
        kept = tl.load(keep + token) > 0
    if kept:
        value = tl.load(x + here, inside, other=0.0).to(tl.float32)
        if SUM:
            more = tl.load(update + here, inside, other=0.0).to(tl.float32)
            value += tl.load(gain + row * by_gain + at, inside, other=0.0) * more
    else:
        value = tl.load(other + here, inside, other=0.0).to(tl.float32)
        value += tl.load(stand_in + here, inside, other=0.0).to(tl.float32)
    if SUM:
        tl.store(total + here, value.to(total.dtype.element_ty), inside)
    centred = tl.where(inside, value - tl.sum(value) / C, 0.0)
    normal = centred * tl.rsqrt(tl.sum(centred * centred) / C + eps)
    made = normal * tl.load(scale + row * by_scale + at, inside, other=0.0)
    made += tl.load(shift + row * by_scale + at, inside, other=0.0)
    tl.store(out + here, made.to(out.dtype.element_ty), inside)


@dataclass
class Update:
    """What is to be added to tokens (R, l, C): ``added`` (R, l, C) times ``gain`` (R, 1, C).

    With ``keep`` (R, l) only to those kept; the others become ``other`` plus ``stand_in``, (R, l, C) each.
    """

    gain: Tensor
    added: Tensor
    keep: Tensor | None = None
    other: Tensor | None = None
    stand_in: Tensor | None = None


def sum_adaln(
    x: Tensor, update: Update | None, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """``x`` (R, l, C) with its ``update``, and the layer norm of that times ``scale`` plus ``shift`` in ``dtype``.

    ``scale`` and ``shift`` are (R, 1, C), of the same strides.
    """
    x, dim = x.contiguous(), x.shape[-1]
    total = x if update is None else torch.empty_like(x)
    out = torch.empty_like(x, dtype=dtype)
    what = update or Update(scale, x)
    pick = what.keep is not None
    picking = (what.keep.view(torch.uint8), what.other, what.stand_in) if what.keep is not None else (x, x, x)
    _adaln[(x.numel() // dim,)](
        x, what.gain, what.gain.stride(0), what.added.contiguous(), *picking, scale, shift, scale.stride(0), total, out,
        x.shape[1], eps, C=dim, W=triton.next_power_of_2(dim), SUM=update is not None, PICK=pick, num_warps=4,
    )  # fmt: skip
    return total, out


@triton.jit
def _heads(query, by_query, pair, by_pair, q_bias, v_bias, gain, queries, keys, values, tokens, first, by_row, by_head, most, H: tl.constexpr, HW: tl.constexpr, D: tl.constexpr, DW: tl.constexpr, NORM: tl.constexpr):  # fmt: skip  # noqa: E501
    token = tl.program_id(0).to(tl.int64)
    head, at = tl.arange(0, HW)[:, None], tl.arange(0, DW)[None, :]
    inside = (head < H) & (at < D)
    here = head * D + at
    q = tl.load(query + token * by_query + here, inside, other=0.0).to(tl.float32)
    k = tl.load(pair + token * by_pair + here, inside, other=0.0).to(tl.float32)
    v = tl.load(pair + token * by_pair + H * D + here, inside, other=0.0).to(tl.float32)
    q += tl.load(q_bias + here, inside, other=0.0).to(tl.float32)
    v += tl.load(v_bias + here, inside, other=0.0).to(tl.float32)
    if NORM:
        wanted = tl.exp(tl.minimum(tl.load(gain + head, head < H, other=0.0), most))
        q *= wanted / tl.maximum(tl.sqrt(tl.sum(q * q, 1)), 1e-12)[:, None]
        k *= 1.0 / tl.maximum(tl.sqrt(tl.sum(k * k, 1)), 1e-12)[:, None]
    tl.store(queries + token * (H * D) + here, q.to(queries.dtype.element_ty), inside)
    cached = token // tokens * by_row + head * by_head + (first + token % tokens) * D + at
    tl.store(keys + cached, k.to(keys.dtype.element_ty), inside)
    tl.store(values + cached, v.to(values.dtype.element_ty), inside)


def split_heads(
    q: Tensor,
    kv: Tensor,
    q_bias: Tensor,
    v_bias: Tensor,
    gain: Tensor | None,
    keys: Tensor,
    values: Tensor,
    first: int,
) -> Tensor:
    """Queries (R, l, H, d) of ``q`` (R, l, H d); keys and values of ``kv`` (R, l, 2 H d) go to (R, H, L, d) each.

    They get the positions from ``first`` on. Biases (H d,) are added. With ``gain``, the logarithm of the length that
    the queries of each head are brought to, (H,), up to `attention.LONGEST`, keys are brought to length 1.
    """
    (rows, tokens, _), (_, heads, _, dim) = q.shape, keys.shape
    queries = q.new_empty(rows, tokens, heads, dim)
    _heads[(rows * tokens,)](
        q, q.stride(1), kv, kv.stride(1), q_bias, v_bias, q_bias if gain is None else gain, queries, keys, values,
        tokens, first, keys.stride(0), keys.stride(1), LONGEST, H=heads, HW=triton.next_power_of_2(heads), D=dim,
        DW=triton.next_power_of_2(dim), NORM=gain is not None, num_warps=4,
    )  # fmt: skip
    return queries
