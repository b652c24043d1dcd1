"""The terms of the distillation loss: tensors in, scalars out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def scale_weights(patch_nums: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Weights (L,) of the positions, of mean 1: those of a scale of n tokens are proportional to 1 / sqrt(n).

    Halfway between every token counting the same, which would be mostly about the last scale, and every scale.
    """
    sides = torch.tensor(patch_nums, device=device)
    return (sides.square().sum() / sides.sum() / sides).repeat_interleave(sides.square())


def kl_divergence(p: Tensor, q: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    """Mean over positions, with ``weights`` (L,), of KL(p || q), in nats, of logits (B, L, V)."""
    log_p, log_q = F.log_softmax(p.float(), dim=-1), F.log_softmax(q.float(), dim=-1)
    return (weights * F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)).mean()


def hidden_error(teacher: list[Tensor], student: list[Tensor], weights: Tensor | float = 1.0) -> Tensor:
    """Mean over blocks of the squared error of their outputs (B, L, C), relative to the teacher's energy.

    ``weights`` (L,) are those of the positions. Tokens that were reconstructed count like all others.
    """

    def energy(x: Tensor) -> Tensor:
        return (weights * x.float().square().sum(-1)).mean()

    return torch.stack([energy(s - t) / energy(t) for t, s in zip(teacher, student, strict=True)]).mean()


def cost_excess(cost: Tensor, budget: float) -> Tensor:
    """Squared excess of the cost over the budget; nothing is owed below it.

    One-sided: a penalty from both sides was seen to push token gates open (docs/method.md).
    """
    return F.relu(cost - budget).square()
