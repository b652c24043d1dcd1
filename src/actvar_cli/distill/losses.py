"""The terms of the distillation loss: tensors in, scalars out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def kl_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean over positions of KL(teacher || student), in nats, of logits (B, L, V)."""
    target = F.log_softmax(teacher.float(), dim=-1).flatten(0, 1)
    given = F.log_softmax(student.float(), dim=-1).flatten(0, 1)
    return F.kl_div(given, target, log_target=True, reduction="batchmean")


def hidden_error(teacher: list[Tensor], student: list[Tensor]) -> Tensor:
    """Mean over blocks of the squared error of their outputs (B, L, C), relative to the teacher's energy.

    Tokens that were reconstructed count like all others.
    """
    errors = [
        (s.float() - t.float()).square().sum(-1).mean() / t.float().square().sum(-1).mean()
        for t, s in zip(teacher, student, strict=True)
    ]
    return torch.stack(errors).mean()


def cost_excess(cost: Tensor, budget: float) -> Tensor:
    """Squared excess of the cost over the budget; nothing is owed below it.

    One-sided: a penalty from both sides was seen to push token gates open (docs/method.md).
    """
    return F.relu(cost - budget).square()
