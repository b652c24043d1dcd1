"""How the FFN of tokens with some experts off is computed: several ways to the same numbers, and which is taken.

What each way takes was measured (docs/experts.md).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from actvar_cli.errors import InputError, did_you_mean
from actvar_cli.model.bags import sums_of_rows
from actvar_cli.model.counters import is_exact
from actvar_cli.model.kernels.usable import MOST_EXPERTS, UNIT, preferred, usable
from actvar_cli.model.products import fitted, lacking, product_dtype, widened

if TYPE_CHECKING:
    from actvar_cli.model.experts import ExpertFFN
    from actvar_cli.model.kernels.tiles import Tiles

VARIABLE = "ACTVAR_DISPATCH"
"""The environment variable that forces one of `WAYS`."""


class Overhead(NamedTuple):
    """What experts take on a CPU beyond their neurons; the faster its products are, the more of them that is worth.

    ``call``: multiplications (of one layer) that an expert takes for being called at all. The others are in neurons:
    what a row takes to be gathered and summed up (``gather``), or to be computed and then masked (``mask``). More than
    ``piece`` rows are computed in pieces: from 512 to 1023 of them bfloat16 products take twice as long as they should.
    """

    call: float
    gather: int
    mask: int
    piece: int = sys.maxsize


OVERHEAD = (
    {torch.float32: Overhead(12e6, 110, 12), torch.bfloat16: Overhead(30e6, 500, 45, piece=448)}
    if "AVX512" in torch.backends.cpu.get_cpu_capability()
    else {torch.float32: Overhead(5e6, 60, 12)}
)

START = 40
"""What an expert that runs at all costs beyond its rows, in rows: its weights are read, and few rows are slow."""

TILES_FROM = 2**34
"""Multiplications of one layer from which a GPU takes `tiles`: below, sorting tokens takes longer than it saves."""

WITHOUT_HOST = {"dense", "tiles"}
"""Ways that a GPU takes without the host having to know how many tokens want what."""

_grouped_mm = F.grouped_mm if hasattr(F, "grouped_mm") else torch._grouped_mm


def _overhead(ffn: ExpertFFN) -> Overhead:
    return OVERHEAD.get(product_dtype(ffn.fc1.weight), OVERHEAD[torch.float32])


def run(ffn: ExpertFFN, x: Tensor, on: Tensor) -> Tensor:
    """``x`` (…, C) to (…, C) with the experts that are ``on`` (…, E, boolean)."""
    rows = on.shape[:-1].numel()
    return WAYS[way_for(ffn, rows)](ffn, x, on) if rows else x


def forced() -> str:
    """The way that the environment asks for, or none; raises InputError if there is no such way."""
    way = os.environ.get(VARIABLE, "")
    if way and way not in WAYS:
        near = did_you_mean(way, list(WAYS))
        raise InputError(f"{VARIABLE}: there is no way {way!r}{near}: one of {', '.join(WAYS)}, or unset")
    return way


def way_for(ffn: ExpertFFN, rows: int) -> str:
    """Which of `WAYS` is taken by ``ffn`` where it is, for so many tokens."""
    if is_exact():
        return "loop"
    if way := forced():
        return way
    if ffn.fits_kernels and preferred(ffn.fc1.weight):
        return "tiles" if rows * ffn.fc1.weight.numel() >= TILES_FROM else "dense"
    return "split" if ffn.fc1.weight.device.type == "cpu" else "loop"


def dense(ffn: ExpertFFN, x: Tensor, on: Tensor) -> Tensor:
    """One product for all experts, with zeros where one is off: for few rows, and where hardly any is off."""
    if not (ffn.fits_kernels and preferred(ffn.fc1.weight)):
        return ffn.masked(x, on.float())
    from actvar_cli.model.kernels.ffn import leave_out

    hidden = ffn.hidden(x).flatten(0, -2)
    base = leave_out(hidden, on.flatten(0, -2), ffn.fc2.bias, ffn.expert_mean)
    return base.addmm_(hidden, ffn.fc2.weight.T).view_as(x)


def loop(ffn: ExpertFFN, x: Tensor, on: Tensor) -> Tensor:
    """One expert after the other, each on its own rows: its neurons stay in a CPU's cache."""
    on = on.flatten(0, -2)
    counts = on.sum(0).tolist()
    return _by_expert(ffn, x, on, counts, [n == len(on) for n in counts])


def split(ffn: ExpertFFN, x: Tensor, on: Tensor) -> Tensor:
    """The same, but experts that most rows want run for all rows; or `dense`, where that takes less."""
    flat, width = on.flatten(0, -2), ffn.expert_dim
    counts, rows = flat.sum(0).tolist(), len(flat)
    over = _overhead(ffn)
    start = START * width + over.call / x.shape[-1]
    apart = [n * (width + over.gather) + start if n else 0 for n in counts]
    whole = rows * (width + over.mask) + start
    effort = sum(min(cost, whole) for cost in apart)
    if min(counts) < rows and effort >= ffn.num_experts * rows * (width + over.mask):
        return dense(ffn, x, on)
    return _by_expert(ffn, x, flat, counts, [whole <= cost for cost in apart])


def _by_expert(ffn: ExpertFFN, x: Tensor, on: Tensor, counts: list[int], common: list[bool]) -> Tensor:
    """Experts on ``counts`` (E) rows each; those that are ``common`` run for all rows, neighbours in one product."""
    shape, rows, width = x.shape, len(on), ffn.expert_dim
    if min(counts) == rows:
        return ffn.forward(x)
    x = fitted(x, ffn.fc1.weight)
    # The means are float32 whatever the weights are, and so are sums over experts.
    partly = torch.tensor([float(n < rows) for n in counts], device=x.device)
    means = partly[:, None] * ffn.expert_mean
    constant = ffn.fc2.bias + means.sum(0)
    picked = [e for e, n in enumerate(counts) if n and not common[e]]
    out = _picked(ffn, x.flatten(0, -2), on, counts, picked) + constant if picked else constant.repeat(rows, 1)
    for first, last in _runs(common):
        hidden = ffn.hidden_of(first, x, last).flatten(0, -2)
        if min(counts[first:last]) < rows:
            mask = on[:, first:last]
            hidden.unflatten(-1, (-1, width)).mul_(mask.unsqueeze(-1))
            out.addmm_(mask.float(), means[first:last], alpha=-1)
        out.add_(ffn.output_of(first, hidden, last=last))
    return out.view(shape)


def _picked(ffn: ExpertFFN, x: Tensor, on: Tensor, counts: list[int], experts: list[int]) -> Tensor:
    """What the ``experts`` make of those rows of ``x`` (n, C) that want them, over their means, summed by row."""
    on = on[:, experts]
    tokens = on.T.nonzero()[:, 1].split([counts[e] for e in experts])
    pieces = [
        (e, piece) for e, index in zip(experts, tokens, strict=True) for piece in index.split(_overhead(ffn).piece)
    ]
    # What comes of each lies one after the other, with the rows that they were filled up with between.
    sizes = [len(piece) + lacking(len(piece), ffn.fc1.weight) for _, piece in pieces]
    made = x.new_empty(sum(sizes), x.shape[1])
    for (e, piece), part in zip(pieces, made.split(sizes), strict=True):
        hidden = ffn.hidden_of(e, x.index_select(0, F.pad(piece, (0, len(part) - len(piece))))).to(part.dtype)
        torch.addmm(-ffn.expert_mean[e].to(hidden.dtype), hidden, ffn.weight_of(e).T, out=part)
    lengths = torch.tensor([len(piece) for _, piece in pieces], device=x.device)
    filled = torch.tensor([0, *accumulate(sizes)][:-1], device=x.device) - (lengths.cumsum(0) - lengths)
    by_token = _by_token(on)
    place = by_token + filled.repeat_interleave(lengths)[by_token]
    ends = F.pad(on.sum(1).cumsum(0), (1, 0))
    return sums_of_rows(made, place, ends)


def _by_token(on: Tensor) -> Tensor:
    """Where each pair of a row and an expert that is ``on`` (n, E), row by row, lies among them sorted by expert."""
    return (on.T.flatten().cumsum(0).view_as(on.T) - 1).T[on]


def _runs(flags: list[bool]) -> Iterator[tuple[int, int]]:
    """Where the longest runs of true ``flags`` begin and end."""
    edges = [i for i, (a, b) in enumerate(pairwise([False, *flags, False])) if a != b]
    return zip(edges[::2], edges[1::2], strict=True)


def grouped(ffn: ExpertFFN, x: Tensor, on: Tensor) -> Tensor:
    """Two grouped products over all pairs of a token and one of its experts, sorted by expert: for a GPU."""
    shape, on = x.shape, on.flatten(0, -2)
    experts, width = ffn.num_experts, ffn.expert_dim
    expert, token = on.T.nonzero(as_tuple=True)
    ends = on.sum(0).cumsum(0, dtype=torch.int32)
    rows = fitted(x, ffn.fc1.weight).flatten(0, -2).index_select(0, token)
    first = widened(ffn.fc1.weight, rows).view(experts, width, -1).transpose(1, 2)
    second = widened(ffn.fc2.weight, rows).view(-1, experts, width).permute(1, 2, 0)
    hidden = _grouped_mm(rows, first, offs=ends) + ffn.fc1.bias.view(experts, width)[expert]
    y = _grouped_mm(F.gelu(hidden, approximate="tanh"), second, offs=ends) - ffn.expert_mean[expert]
    # Back in the order of tokens, and summed in the order of experts: adding in any order would not give the same
    # picture twice on a GPU.
    total = torch.segment_reduce(y.index_select(0, _by_token(on)), "sum", lengths=on.sum(1), initial=0.0)
    return (total + ffn.fc2.bias + ffn.expert_mean.sum(0)).view(shape)


def tiles(ffn: ExpertFFN, x: Tensor, on: Tensor) -> Tensor:
    """In tiles of tokens that want about the same experts, by kernels for GPUs."""
    if not ffn.fits_kernels or not usable(ffn.fc1.weight):
        needs = f"an NVIDIA GPU, Triton, at most {MOST_EXPERTS} experts, and widths that are multiples of {UNIT}"
        raise InputError(f"{VARIABLE}: 'tiles' needs {needs}")
    from actvar_cli.model.kernels.ffn import TILE
    from actvar_cli.model.kernels.tiles import tiles_of

    return _in_tiles(ffn, x, tiles_of(on.flatten(0, -2), TILE), ffn.expert_mean)


def whole(ffn: ExpertFFN, x: Tensor, picked: Tiles) -> Tensor:
    """All experts of the tokens that were ``picked`` by a token gate; the others may become anything."""
    return _in_tiles(ffn, x, picked, None)


def _in_tiles(ffn: ExpertFFN, x: Tensor, found: Tiles, means: Tensor | None) -> Tensor:
    from actvar_cli.model.kernels.ffn import tiled_ffn

    layers = ffn.fc1.weight, ffn.fc1.bias, ffn.fc2.weight, ffn.fc2.bias
    return tiled_ffn(x.to(ffn.fc1.weight.dtype).flatten(0, -2), found, *layers, means).view_as(x)


WAYS: dict[str, Callable[[ExpertFFN, Tensor, Tensor], Tensor]] = {
    way.__name__: way for way in (dense, loop, split, grouped, tiles)
}
