"""What the computed tokens around a skipped one say about it: their mean, weighed by how near they are.

Source: normalised convolution (Knutsson and Westin 1993), with the kernel of bilinear interpolation.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from actvar_cli.model.bags import sums_of_rows


@lru_cache
def nearness(side: int, device: torch.device) -> Tensor:
    """Weights (side², side²) of all tokens of a scale for each: 2 beside it, 1 diagonally, else 0."""
    place = torch.arange(side, device=device)
    near = (2 - (place[:, None] - place).abs()).clamp_min(0)
    return torch.kron(near, near).fill_diagonal_(0).float()


@lru_cache
def _nearest(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The 8 tokens (side², 8) with the largest `nearness` to each, and that; of a small scale there are fewer."""
    found = nearness(side, device).topk(min(8, side * side), dim=1)
    return found.indices, found.values


def weights_of_computed(keep: Tensor, side: int) -> Tensor:
    """Weights (R, side², side²) of all tokens in each one's mean of those around it to ``keep`` (R, side²)."""
    weights = nearness(side, keep.device) * keep.unsqueeze(1)
    return weights / weights.sum(-1, keepdim=True).clamp_min(1)


def mean_of_computed(x: Tensor, keep: Tensor, side: int, weights: Tensor | None = None) -> Tensor:
    """For every token of ``x`` (R, side², C) the mean of those around it that are to ``keep`` (R, side²); else 0.

    ``weights`` are those of `weights_of_computed`, for who needs several means.
    """
    weights = weights_of_computed(keep, side) if weights is None else weights
    # What was not computed may be anything.
    return weights.to(x.dtype) @ torch.where(keep.unsqueeze(-1), x, x.new_zeros(()))


class Around:
    """The same for the tokens ``rest`` (n,), indices into the flattened ``keep`` (R, side²), and for no others.

    Where many are kept it takes less than a product of all with all.
    """

    def __init__(self, keep: Tensor, rest: Tensor, side: int) -> None:
        tokens, near = _nearest(side, keep.device)
        place = rest % len(tokens)
        index = (rest - place)[:, None] + tokens[place]
        weights = near[place] * keep.flatten()[index]
        used = weights > 0
        self.index, counts = index[used], used.sum(1)
        self.weights = (weights / weights.sum(1, keepdim=True).clamp_min(1))[used]
        self.ends = F.pad(counts.cumsum(0), (1, 0))

    def mean(self, x: Tensor, place: Tensor | None = None) -> Tensor:
        """The means (n, C) of ``x``, (R side², C), or of fewer rows, where token ``i`` is row ``place[i]``."""
        index = self.index if place is None else place[self.index]
        return sums_of_rows(x, index, self.ends, self.weights)
