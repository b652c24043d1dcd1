"""Tokens in tiles that want about the same experts, found without the host having to know how many want what."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

KEY_BITS = 8
"""Experts that tokens are sorted by: those that are wanted least, since each parts off few tokens."""

CHUNK = 64
"""Tokens of one program while sorting."""


@dataclass
class Tiles:
    """N tokens in T tiles of ``size``, for E ``choices``: experts, or whether a token is computed at all.

    ``order`` (N,) holds the tokens in turn, ``bits`` (N,) what each wants, as a number; ``listed`` (T,) what a tile
    computes, in order, four bits each, ``counts`` (T,) how many these are.
    """

    size: int
    choices: int
    order: Tensor
    bits: Tensor
    listed: Tensor
    counts: Tensor


@triton.jit
def _wanted(on, token, N, E: tl.constexpr, EW: tl.constexpr):
    """What tokens want, (tokens, EW) of 0 and 1."""
    e = tl.arange(0, EW)[None, :]
    return tl.load(on + token.to(tl.int64)[:, None] * E + e, (token < N)[:, None] & (e < E), other=0).to(tl.int32)


@triton.jit
def _count(on, wanted, N, E: tl.constexpr, EW: tl.constexpr, M: tl.constexpr):
    token, e = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, EW)
    tl.atomic_add(wanted + e, tl.sum(_wanted(on, token, N, E, EW), 0), e < E)


@triton.jit
def _keys(on, wanted, token, N, E: tl.constexpr, EW: tl.constexpr, BITS: tl.constexpr):
    """What tokens are sorted by: a bit for each of the choices that are wanted least, but wanted."""
    e = tl.arange(0, EW)
    count = tl.load(wanted + e, e < E, other=0)
    count = tl.where(count == 0, N + 1, count)
    before = (count[None, :] < count[:, None]) | ((count[None, :] == count[:, None]) & (e[None, :] < e[:, None]))
    place = BITS - 1 - tl.sum(before.to(tl.int32), 1)
    weight = tl.where(place >= 0, 1 << tl.maximum(place, 0), 0)
    return tl.sum(_wanted(on, token, N, E, EW) * weight[None, :], 1)


@triton.jit
def _histogram(on, wanted, found, N, E: tl.constexpr, EW: tl.constexpr, BITS: tl.constexpr, M: tl.constexpr):
    token, key = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, 1 << BITS)
    theirs = tl.where(token < N, _keys(on, wanted, token, N, E, EW, BITS), -1)
    mine = tl.sum((theirs[:, None] == key[None, :]).to(tl.int32), 0)
    tl.atomic_add(found + key, mine, mine > 0)


@triton.jit
def _place(on, wanted, found, taken, order, N, E: tl.constexpr, EW: tl.constexpr, BITS: tl.constexpr, M: tl.constexpr):
    token, key = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, 1 << BITS)
    mine = _keys(on, wanted, token, N, E, EW, BITS)
    # What is wanted most comes first: tiles that have nothing to compute are the last.
    first = tl.sum(tl.where(key[None, :] > mine[:, None], tl.load(found + key)[None, :], 0), 1)
    # Which of the tokens with the same key comes first differs from run to run, but no number does.
    place = first + tl.atomic_add(taken + mine, 1, token < N)
    tl.store(order + place, token, token < N)


@triton.jit
def _lists(on, order, bits, listed, counts, N, E: tl.constexpr, EW: tl.constexpr, M: tl.constexpr):
    tile, e = tl.program_id(0), tl.arange(0, EW)
    place = tile * M + tl.arange(0, M)
    wanted = _wanted(on, tl.load(order + place, place < N, other=N), N, E, EW)
    tl.store(bits + place, tl.sum(wanted << e[None, :], 1), place < N)
    here = (tl.max(wanted, 0) > 0).to(tl.int64)
    shift = 4 * (tl.cumsum(here, 0) - here)
    tl.store(listed + tile, tl.sum((here * e) << shift, 0))
    tl.store(counts + tile, tl.sum(here, 0).to(tl.int32))


def tiles_of(on: Tensor, size: int) -> Tiles:
    """Tiles of ``size`` tokens for ``on`` (N, E, boolean), E up to `usable.MOST_EXPERTS`."""
    rows, choices = on.shape
    on = on.contiguous().view(torch.uint8)
    tiles, key_bits = triton.cdiv(rows, size), min(choices, KEY_BITS)
    order, bits = on.new_empty(2, rows, dtype=torch.int32).unbind(0)
    listed, counts = on.new_empty(tiles, dtype=torch.int64), on.new_empty(tiles, dtype=torch.int32)
    keys = 1 << key_bits
    wanted, found, taken = on.new_zeros(choices + 2 * keys, dtype=torch.int32).split([choices, keys, keys])
    grid, wide = (triton.cdiv(rows, CHUNK),), triton.next_power_of_2(choices)
    _count[grid](on, wanted, rows, E=choices, EW=wide, M=CHUNK)
    _histogram[grid](on, wanted, found, rows, E=choices, EW=wide, BITS=key_bits, M=CHUNK)
    _place[grid](on, wanted, found, taken, order, rows, E=choices, EW=wide, BITS=key_bits, M=CHUNK)
    _lists[(tiles,)](on, order, bits, listed, counts, rows, E=choices, EW=wide, M=size)
    return Tiles(size, choices, order, bits, listed, counts)
