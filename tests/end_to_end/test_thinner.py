"""The baseline of benchmarks/thinner.py."""

from __future__ import annotations

import torch

from actvar_cli.model.sampling import ActVAR, single_rows
from benchmarks.thinner import cost_by, empty, narrowed, width_for
from tests.tiny import tiny_model


def guided() -> ActVAR:
    model = tiny_model(guidance=True)
    model.threshold = 0.0
    return model


@torch.no_grad()
def test_with_all_channels_it_is_the_same_model_and_with_fewer_another() -> None:
    model = guided()
    labels = torch.tensor([0, 1])
    rows = single_rows(model, labels, model.sample_tokens(labels, seed=0).clone())

    def logits(of: ActVAR) -> torch.Tensor:
        return of.transformer(*rows, of.transformer.teacher_forced(0.0))

    theirs = logits(model)
    torch.testing.assert_close(logits(narrowed(model, torch.arange(32))), theirs)
    fewer = logits(narrowed(model, torch.arange(0, 32, 2)))
    assert fewer.shape == theirs.shape and fewer.isfinite().all() and not torch.allclose(fewer, theirs, atol=1e-2)


def test_it_is_as_wide_as_the_budget_allows() -> None:
    model = guided()
    dim = width_for(0.3, model)
    assert cost_by(empty(model, dim), model.config) <= 0.3 < cost_by(empty(model, dim + 2), model.config)
