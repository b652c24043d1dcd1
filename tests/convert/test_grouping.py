"""Grouping neurons."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actvar_cli.convert.grouping import balanced_assignment, balanced_kmeans, group_neurons
from actvar_cli.convert.recording import FFNRecord
from actvar_cli.convert.settings import Method
from actvar_cli.model.config import TransformerConfig
from actvar_cli.model.experts import FFN


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


def record(h: torch.Tensor) -> FFNRecord:
    return FFNRecord(h, torch.ones_like(h), torch.ones(len(h)))


def ffn(dim: int = 16) -> FFN:
    torch.manual_seed(0)
    return FFN(TransformerConfig(depth=1, embed_dim=dim, num_heads=2))


@pytest.mark.parametrize("method", get_args(Method))
def test_no_neuron_is_lost(method: Method) -> None:
    permutation = group_neurons(
        ffn(), record(torch.randn(40, 16)), 4, method, torch.Generator().manual_seed(0), torch.rand(64)
    )
    assert permutation.sort().values.tolist() == list(range(64))


def test_by_magnitude_the_first_expert_has_the_largest_neurons() -> None:
    net = ffn()
    with torch.no_grad():
        net.fc2.weight[:, 5:21] *= 100
    permutation = group_neurons(net, record(torch.randn(40, 16)), 4, "magnitude", torch.Generator().manual_seed(0))
    assert sorted(permutation[:16].tolist()) == list(range(5, 21))


def test_in_tiers_important_neurons_come_first_and_in_each_tier_by_coactivation() -> None:
    net, h = ffn(), torch.zeros(400, 16)
    which = torch.arange(400) % 2
    h[torch.arange(400), which] = 1
    kinds, loud = torch.arange(64) % 2, torch.arange(64) < 32
    with torch.no_grad():
        net.fc1.weight.copy_(torch.randn(64, 16))
        net.fc1.weight[:, :2] = -5
        net.fc1.weight[torch.arange(64), kinds] = 5
        net.fc1.bias.zero_()
        net.fc2.weight.copy_(torch.where(loud, 10.0, 0.1).expand(16, 64))
    permutation = group_neurons(net, record(h), 4, "tiers", torch.Generator().manual_seed(0))
    groups = permutation.split(16)
    assert [bool(loud[group].all()) for group in groups] == [True, True, False, False]
    assert all(len(kinds[group].unique()) == 1 for group in groups)


def test_by_coactivation_neurons_that_fire_together_are_together() -> None:
    net, h = ffn(), torch.zeros(400, 16)
    which = torch.arange(400) % 4
    h[torch.arange(400), which] = 1
    kinds = torch.arange(64) % 4
    with torch.no_grad():
        # Weights that look alike to k-means, since only four of sixteen inputs ever vary.
        net.fc1.weight.copy_(torch.randn(64, 16))
        net.fc1.weight[:, :4] = -5
        net.fc1.weight[torch.arange(64), kinds] = 5
        net.fc1.bias.zero_()
    permutation = group_neurons(net, record(h), 4, "coactivation", torch.Generator().manual_seed(0))
    assert all(len(kinds[part].unique()) == 1 for part in permutation.split(16))


@pytest.mark.parametrize("method", ["kmeans", "random"])
def test_a_grouping_is_not_the_order_that_was_there(method: Method) -> None:
    seen, generator = record(torch.randn(40, 16)), torch.Generator().manual_seed(0)
    assert not torch.equal(group_neurons(ffn(), seen, 4, method, generator), torch.arange(64))
