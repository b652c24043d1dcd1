"""Random numbers as torch draws them, number for number, but sooner."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

AT_ONCE = 2**20
"""Numbers that are drawn in double precision at a time: what is kept of them takes half the room."""


def exponential_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Exponential noise of the shape of ``x``, float32: what ``torch.empty_like(x).exponential_`` would draw.

    On a CPU torch draws and transforms one number after the other. Here they are transformed together, on all cores.
    """
    made = torch.empty_like(x)
    if x.device.type != "cpu" or x.dtype != torch.float32 or not _equal():
        return made.exponential_(generator=generator)
    for part in made.view(-1).split(AT_ONCE):
        _draw(part, generator)
    return made


def _draw(into: Tensor, generator: torch.Generator | None) -> None:
    uniform = torch.rand(len(into), dtype=torch.float64, generator=generator)
    into.copy_(uniform.neg_().log1p_().neg_())


@cache
def _equal() -> bool:
    """Whether these are torch's numbers: on some CPUs it takes another way, that of Intel's MKL."""
    theirs, ours = (torch.empty(256) for _ in range(2))
    theirs.exponential_(generator=torch.Generator().manual_seed(0))
    _draw(ours, torch.Generator().manual_seed(0))
    return torch.equal(theirs, ours)
