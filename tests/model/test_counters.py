from __future__ import annotations

import math

import pytest
import torch

from actvar_cli.model.config import EVERYTHING
from actvar_cli.model.counters import PARTS, WorkCounter, dense_macs
from actvar_cli.model.sampling import ActVAR
from tests.tiny import tiny_config, tiny_model

LABELS = torch.tensor([0, 1, 2, 0])


def counted(model: ActVAR, labels: torch.Tensor = LABELS, seed: int = 0) -> WorkCounter:
    counter = WorkCounter(model.config)
    model.sample(labels, seed=seed, counter=counter)
    return counter


@pytest.mark.parametrize("shared_aln", [False, True])
def test_dense_run_is_what_the_formula_says(shared_aln: bool) -> None:
    model = tiny_model(shared_aln=shared_aln)
    counter = counted(model)
    assert counter.total == dense_macs(model.config, 4)
    assert counter.cost == 1


def test_with_everything_on_a_converted_model_costs_what_the_original_does() -> None:
    model = tiny_model(experts=True, token_gate=True)
    assert counted(model).total == dense_macs(tiny_config(), 4)


def test_parts_and_scales_add_up_to_the_total() -> None:
    model = tiny_model(experts=True, token_gate=True)
    model.threshold = 0.0
    counter = counted(model)
    assert set(counter.by_part()) == set(PARTS)
    assert sum(counter.by_part().values()) == pytest.approx(counter.total / 4)
    assert sum(counter.by_scale()) == pytest.approx(counter.total / 4)
    assert all(value > 0 for value in counter.by_part().values())


def test_nothing_on_costs_keys_values_and_decisions_only() -> None:
    model = tiny_model(experts=True, token_gate=True)
    model.threshold = math.inf
    counter = counted(model)
    dim, rows = 32, 8
    gated = rows * (4 + 9)
    # The first scale has no gate: its one token is computed, without experts. The others give keys and values only.
    assert counter.macs["attention", 0] == 2 * rows * (4 * dim * dim + 2 * dim)
    assert counter.macs["attention", 1] + counter.macs["attention", 2] == 2 * gated * 2 * dim * dim
    assert counter.by_part()["ffn"] == 0
    assert counter.by_part()["router"] * 4 == 2 * rows * 8 * (dim + 4)
    assert counter.by_part()["token_gate"] * 4 == 2 * gated * 4 * (dim + 1)
    assert counter.by_part()["reconstruction"] * 4 == 2 * gated * 2 * dim * 4
    assert counter.density("tokens") == [[1, 0, 0]] * 2
    assert counter.density("experts") == [[0, 0, 0]] * 2


def test_everything_on_still_pays_for_the_decisions() -> None:
    model = tiny_model(experts=True, token_gate=True)
    model.threshold = EVERYTHING + 1
    counter = counted(model)
    assert counter.density("tokens") == counter.density("experts") == [[1, 1, 1]] * 2
    decisions = 4 * (counter.by_part()["router"] + counter.by_part()["token_gate"])
    assert decisions > 0
    assert counter.total == dense_macs(model.config, 4) + decisions
    assert counter.cost > 1


def test_where_nothing_can_be_left_out_nobody_is_asked() -> None:
    model = tiny_model(experts=True, token_gate=True)
    tokens = []
    for threshold in (EVERYTHING + 1, EVERYTHING, -math.inf):
        model.threshold = threshold
        tokens.append(model.sample_tokens([0, 1, 2], seed=0))
        counter = counted(model)
    assert counter.total == dense_macs(model.config, 4)
    assert torch.equal(tokens[0], tokens[1]) and torch.equal(tokens[0], tokens[2])


def test_density_is_the_share_of_the_decisions_made() -> None:
    counter = WorkCounter(tiny_config(experts=True, token_gate=True))
    counter.attention(1, 2, computed=3, skipped=9, length=14)
    counter.experts(1, 2, 3, torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool))
    assert counter.density("tokens")[1][2] == 0.25
    assert counter.density("experts")[1][2] == 0.5


def test_several_samplings_add_up_to_an_average_per_image() -> None:
    model = tiny_model(experts=True)
    model.threshold = 0.0
    both = WorkCounter(model.config)
    totals = []
    for seed in (0, 1):
        model.sample(LABELS[: seed + 2], seed=seed, counter=both)
        totals.append(counted(model, LABELS[: seed + 2], seed).total)
    assert both.images == 5
    assert both.total == sum(totals)
    assert both.cost == pytest.approx(sum(totals) / dense_macs(model.config, 5))
