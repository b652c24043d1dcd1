"""The baseline of benchmarks/thinner.py."""

from __future__ import annotations

import pytest
import torch
from thinner import as_wide, cost_by, narrowed, width_for

from actvar_cli.model.counters import WorkCounter, dense_macs
from actvar_cli.model.sampling import ActVAR, single_rows
from tests.tiny import tiny_config, tiny_model


@torch.no_grad()
def test_with_all_channels_it_is_the_same_model_and_with_fewer_another() -> None:
    model = tiny_model(guidance=True)
    model.threshold = 0.0
    labels = torch.tensor([0, 1])
    rows = single_rows(model, labels, model.sample_tokens(labels, seed=0).clone())

    def logits(of: ActVAR) -> torch.Tensor:
        return of.transformer(*rows, of.transformer.teacher_forced(0.0))

    theirs = logits(model)
    torch.testing.assert_close(logits(narrowed(model, torch.arange(32))), theirs)
    fewer = logits(narrowed(model, torch.arange(0, 32, 2)))
    assert fewer.shape == theirs.shape and fewer.isfinite().all() and not torch.allclose(fewer, theirs, atol=1e-2)


def test_it_is_as_wide_as_the_budget_allows() -> None:
    config = tiny_config(guidance=True)
    dim = width_for(0.3, config)
    assert cost_by(as_wide(config, dim), config) <= 0.3 < cost_by(as_wide(config, dim + 2), config)


def test_it_costs_what_sampling_it_takes() -> None:
    model = tiny_model(guidance=True)
    thinner, counter = narrowed(model, torch.arange(20)), WorkCounter(as_wide(model.config, 20))
    thinner.threshold = 0.0
    thinner.sample_tokens([0], seed=0, counter=counter)
    assert cost_by(thinner.config, model.config) == pytest.approx(counter.total / dense_macs(model.config), rel=1e-5)
