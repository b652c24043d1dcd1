"""Layers for some tokens, and the FFN of tokens with some experts off, tile by tile (`Tiles`).

Nothing is padded per expert, and nothing is added up through memory. A tile computes the experts that any of its
tokens wants; a token's hidden units of an expert that it does not want are set to zero, which leaves its sum what it
is, bit by bit.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from actvar_cli.model.kernels.descriptors import precision, steps_ahead, tiled
from actvar_cli.model.kernels.gelu import gelu
from actvar_cli.model.kernels.tiles import Tiles

TILE = 128
"""Tokens of a tile."""


@triton.jit
def _gather(x, order, counts, out, C: tl.constexpr, W: tl.constexpr, M: tl.constexpr):
    place = tl.program_id(0)
    if tl.load(counts + place // M) > 0:
        at = tl.arange(0, W)
        token = tl.load(order + place).to(tl.int64)
        row = tl.load(x + token * C + at, at < C)
        tl.store(out + place.to(tl.int64) * C + at, row, at < C)


@triton.jit
def _first(x, w, b, out, order, bits, listed, counts, N, C, WIDTH: tl.constexpr, E: tl.constexpr, M: tl.constexpr, COLS: tl.constexpr, K: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip  # noqa: E501
    PER: tl.constexpr = (WIDTH + COLS - 1) // COLS
    tile, block = tl.program_id(0) // (E * PER), tl.program_id(0) % (E * PER)
    if block < tl.load(counts + tile) * PER:
        expert = ((tl.load(listed + tile) >> (4 * (block // PER))) & 15).to(tl.int32)
        within = block % PER * COLS
        total = tl.zeros((M, COLS), tl.float32)
        for k in range(0, C, K):
            left, right = x.load([tile * M, k]), w.load([expert * WIDTH + within, k])
            total = tl.dot(left, right.T, total, input_precision=PRECISION)
        place = tile * M + tl.arange(0, M)
        column = within + tl.arange(0, COLS)
        total += tl.load(b + expert * WIDTH + column, column < WIDTH, other=0.0).to(tl.float32)[None, :]
        if HIDDEN:
            wants = (tl.load(bits + place, place < N, other=0) >> expert) & 1
            total = tl.where((wants > 0)[:, None], gelu(total), 0.0)
            there = place.to(tl.int64)[:, None] * (E * WIDTH) + block // PER * WIDTH + column[None, :]
        else:
            token = tl.load(order + place, place < N, other=0)
            there = token.to(tl.int64)[:, None] * WIDTH + column[None, :]
        tl.store(out + there, total.to(out.dtype.element_ty), (place < N)[:, None] & (column < WIDTH)[None, :])


@triton.jit
def _second(hidden, w, b, means, out, order, bits, listed, counts, N, C, WIDTH: tl.constexpr, E: tl.constexpr, M: tl.constexpr, COLS: tl.constexpr, K: tl.constexpr, MEANS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip  # noqa: E501
    PER: tl.constexpr = WIDTH // K
    blocks = tl.cdiv(C, COLS)
    tile, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    count, experts = tl.load(counts + tile), tl.load(listed + tile)
    if MEANS | (count > 0):
        total = tl.zeros((M, COLS), tl.float32)
        for step in range(0, count * PER):
            expert = ((experts >> (4 * (step // PER))) & 15).to(tl.int32)
            left = hidden.load([tile * M, step * K])
            right = w.load([block * COLS, expert * WIDTH + step % PER * K])
            total = tl.dot(left, right.T, total, input_precision=PRECISION)
        place = tile * M + tl.arange(0, M)
        column = block * COLS + tl.arange(0, COLS)
        inside = column < C
        total += tl.load(b + column, inside, other=0.0).to(tl.float32)[None, :]
        if MEANS:
            wants = tl.load(bits + place, place < N, other=0)
            for e in tl.static_range(E):
                mean = tl.load(means + e * C + column, inside, other=0.0)
                total += tl.where(((wants >> e) & 1) > 0, 0.0, 1.0)[:, None] * mean[None, :]
        token = tl.load(order + place, place < N, other=0).to(tl.int64)
        there = out + token[:, None] * C + column[None, :]
        tl.store(there, total.to(out.dtype.element_ty), (place < N)[:, None] & inside[None, :])


STEP = 64
"""Numbers of each row that a product's step multiplies."""


def _cut(x: Tensor, tiles: Tiles, *widths: int) -> dict[str, Any]:
    """How products of ``tiles`` are cut for the GPU; ``widths`` must be multiples of a step."""
    step = gcd(STEP, *widths)
    columns, warps, ahead = 256, 8, 3
    if steps_ahead(x, tiles.size, columns, STEP) < ahead:
        # With less room two programs of half the size share it.
        columns, warps = 128, 4
        ahead = max(1, min(ahead, steps_ahead(x, tiles.size, columns, STEP)))
    return {"COLS": columns, "K": step, "PRECISION": precision(x), "num_warps": warps, "num_stages": ahead}


def gathered(x: Tensor, tiles: Tiles) -> Tensor:
    """The rows of ``x`` (N, C) in the order of ``tiles``; those of tiles without work are not written."""
    out, dim = torch.empty_like(x), x.shape[1]
    wide = triton.next_power_of_2(dim)
    _gather[(len(x),)](x, tiles.order, tiles.counts, out, C=dim, W=wide, M=tiles.size, num_warps=4)
    return out


def picked_linear(x: Tensor, tiles: Tiles, w: Tensor, b: Tensor) -> Tensor:
    """``x`` (N, C) times ``w`` (D, C) transposed, plus ``b`` (D,), in the tiles that have work: (N, D).

    ``tiles`` are of one choice. Other rows are not written, and may hold anything.
    """
    (rows, dim), wide = x.shape, len(w)
    out, cut = x.new_empty(rows, wide), _cut(x, tiles, dim)
    _first[(len(tiles.counts) * triton.cdiv(wide, cut["COLS"]),)](
        tiled(gathered(x, tiles), tiles.size, cut["K"]), tiled(w, cut["COLS"], cut["K"]), b, out,
        tiles.order, tiles.bits, tiles.listed, tiles.counts, rows, dim, WIDTH=wide, E=1, M=tiles.size, HIDDEN=False,
        **cut,
    )  # fmt: skip
    return out


def tiled_ffn(
    x: Tensor, tiles: Tiles, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, means: Tensor | None = None
) -> Tensor:
    """What an FFN makes of ``x`` (N, C): (N, C), in the type of ``x``.

    ``w1`` (F, C), ``b1`` (F,), ``w2`` (C, F) and ``b2`` (C,) are of that type. ``means`` (E, C), float32, stand in for
    the experts that a token does not want. Without them ``tiles`` are of one choice: all is computed of the tokens that
    were chosen, and the others' rows may hold anything.
    """
    (rows, dim), units, experts = x.shape, len(w1), tiles.choices
    width, cut = units // experts, _cut(x, tiles, dim, units // experts)
    columns, step = cut["COLS"], cut["K"]
    hidden, out = x.new_empty(rows, units), torch.empty_like(x)
    routes = tiles.order, tiles.bits, tiles.listed, tiles.counts, rows, dim
    shape = {"WIDTH": width, "E": experts, "M": tiles.size, **cut}
    _first[(len(tiles.counts) * experts * triton.cdiv(width, columns),)](
        tiled(gathered(x, tiles), tiles.size, step), tiled(w1, columns, step), b1, hidden, *routes, HIDDEN=True, **shape
    )
    _second[(len(tiles.counts) * triton.cdiv(dim, columns),)](
        tiled(hidden, tiles.size, step),
        tiled(w2, columns, step),
        b2,
        b2 if means is None else means,
        out,
        *routes,
        MEANS=means is not None,
        **shape,
    )
    return out


@triton.jit
def _leave_out(hidden, on, b, means, base, C, WIDTH: tl.constexpr, WW: tl.constexpr, CW: tl.constexpr, E: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    unit, column = tl.arange(0, WW), tl.arange(0, CW)
    total = tl.load(b + column, column < C, other=0.0).to(tl.float32)
    for e in tl.static_range(E):
        if tl.load(on + token * E + e) == 0:
            nothing = tl.zeros((WW,), hidden.dtype.element_ty)
            tl.store(hidden + (token * E + e) * WIDTH + unit, nothing, unit < WIDTH)
            total += tl.load(means + e * C + column, column < C, other=0.0)
    tl.store(base + token * C + column, total.to(base.dtype.element_ty), column < C)


def leave_out(hidden: Tensor, on: Tensor, b2: Tensor, means: Tensor) -> Tensor:
    """Zeros in ``hidden`` (N, F) where an expert is not ``on`` (N, E, boolean).

    Returns what the second layer is to add, (N, C): its bias ``b2`` (C,), and the means (E, C) of experts that are off.
    """
    (rows, units), (experts, dim) = hidden.shape, means.shape
    base, width = hidden.new_empty(rows, dim), units // experts
    _leave_out[(rows,)](
        hidden, on.contiguous().view(torch.uint8), b2, means, base, dim, WIDTH=width,
        WW=triton.next_power_of_2(width), CW=triton.next_power_of_2(dim), E=experts, num_warps=4,
    )  # fmt: skip
    return base
