"""Sums of picked rows."""

from __future__ import annotations

import torch

from actvar_cli.model.bags import _one_by_one, sums_of_rows


def test_both_ways_give_the_same_sums() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weights = torch.randn(6, 4, generator=generator), torch.rand(5, generator=generator)
    index, ends = torch.tensor([0, 5, 2, 2, 1]), torch.tensor([0, 2, 2, 5])
    expected = torch.stack([x[0] + x[5], torch.zeros(4), 2 * x[2] + x[1]])
    weighted = torch.stack(
        [weights[0] * x[0] + weights[1] * x[5], torch.zeros(4), (weights[2] + weights[3]) * x[2] + weights[4] * x[1]]
    )
    for way in (sums_of_rows, _one_by_one):
        torch.testing.assert_close(way(x, index, ends, None), expected)
        torch.testing.assert_close(way(x, index, ends, weights), weighted)
