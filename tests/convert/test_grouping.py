"""Grouping neurons."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actvar_cli.convert.grouping import balanced_assignment, balanced_kmeans, group_neurons


@settings(max_examples=40, deadline=None)
@given(groups=st.integers(2, 6), size=st.integers(1, 9), seed=st.integers(0, 1000))
def test_groups_are_equally_large(groups: int, size: int, seed: int) -> None:
    distance = torch.rand(groups * size, groups, generator=torch.Generator().manual_seed(seed))
    assert balanced_assignment(distance).bincount(minlength=groups).tolist() == [size] * groups


def test_a_row_gets_its_nearest_group_while_there_is_room() -> None:
    distance = torch.tensor([[0.1, 0.9], [0.2, 0.3], [0.3, 0.9], [0.9, 0.1]])
    assert balanced_assignment(distance).tolist() == [0, 0, 1, 1]


def test_planted_clusters_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(4, 16)
    truth = torch.arange(4).repeat_interleave(10)[torch.randperm(40, generator=generator)]
    rows = (centres[truth] + 0.05 * torch.randn(40, 16, generator=generator)) * (1 + torch.rand(40, 1))
    labels = balanced_kmeans(rows, 4, generator)
    assert all(len(labels[truth == g].unique()) == 1 for g in range(4))


@pytest.mark.parametrize("method", ["kmeans", "random", "contiguous"])
def test_no_neuron_is_lost(method: str) -> None:
    permutation = group_neurons(torch.randn(64, 8), 4, method, torch.Generator().manual_seed(0))
    assert permutation.sort().values.tolist() == list(range(64))
