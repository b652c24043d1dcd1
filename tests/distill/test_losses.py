"""Terms of the loss."""

from __future__ import annotations

import torch

from actvar_cli.distill.losses import cost_excess, hidden_error, kl_divergence, scale_weights
from actvar_cli.model.router import straight_through


def test_kl_is_zero_only_for_equal_distributions() -> None:
    logits = torch.randn(2, 3, 5)
    assert float(kl_divergence(logits, logits + 2.0)) < 1e-6
    assert float(kl_divergence(logits, -logits)) > 0.1


def test_a_scale_of_a_quarter_of_the_tokens_counts_half_as_much() -> None:
    weights = scale_weights((1, 2, 4))
    assert abs(float(weights.mean()) - 1) < 1e-6
    p, q = torch.randn(2, 21, 5), torch.randn(2, 21, 5)
    parts = [kl_divergence(a, b) for a, b in zip(p.split((1, 4, 16), 1), q.split((1, 4, 16), 1), strict=True)]
    torch.testing.assert_close(kl_divergence(p, q, weights), (parts[0] + 2 * parts[1] + 4 * parts[2]) / 7)


def test_kl_has_a_direction() -> None:
    sure, unsure = torch.tensor([[[8.0, 0.0]]]), torch.tensor([[[0.0, 0.0]]])
    assert float(kl_divergence(sure, unsure)) < float(kl_divergence(unsure, sure))


def test_hidden_error_is_relative() -> None:
    hidden = [torch.randn(2, 3, 4), 100 * torch.randn(2, 3, 4)]
    assert abs(float(hidden_error(hidden, [0.9 * h for h in hidden])) - 0.01) < 1e-5


def test_nothing_is_owed_below_the_budget() -> None:
    assert float(cost_excess(torch.tensor(0.6), 0.7)) == 0
    assert abs(float(cost_excess(torch.tensor(0.8), 0.7)) - 0.01) < 1e-6


def test_straight_through_decides_hard_and_learns_soft() -> None:
    scores = torch.tensor([-2.0, 1.0, 3.0], requires_grad=True)
    on = straight_through(scores, 0.0, temperature=1.0)
    assert on.tolist() == [0, 1, 1]
    on.sum().backward()
    assert scores.grad is not None
    assert (scores.grad > 0).all()
