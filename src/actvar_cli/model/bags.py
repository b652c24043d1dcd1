"""Sums of a few rows each, picked by index."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sums_of_rows(x: Tensor, index: Tensor, ends: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sums (m, C) of rows of ``x`` (n, C): the i-th is over ``index[ends[i]:ends[i + 1]]``, times their ``weights``.

    ``index`` (k,), ``ends`` (m + 1,), ``weights`` (k,).
    """
    if x.device.type == "mps":
        # Before torch 2.10 there are no bags.
        return _one_by_one(x, index, ends, weights)
    return F.embedding_bag(
        index, x, ends, mode="sum", include_last_offset=True,
        per_sample_weights=None if weights is None else weights.to(x.dtype),
    )  # fmt: skip


def _one_by_one(x: Tensor, index: Tensor, ends: Tensor, weights: Tensor | None) -> Tensor:
    rows = x.index_select(0, index)
    if weights is not None:
        rows = rows * weights.to(x.dtype).unsqueeze(1)
    which = torch.arange(len(ends) - 1, device=x.device).repeat_interleave(ends.diff())
    return x.new_zeros(len(ends) - 1, x.shape[1]).index_add_(0, which, rows)
