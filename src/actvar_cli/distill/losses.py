"""The terms of the distillation loss: tensors in, scalars out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def scale_weights(patch_nums: Sequence[int]) -> Tensor:
    """Weights (L,) of the positions, of mean 1, under which every scale counts the same."""
    sizes = torch.tensor([pn * pn for pn in patch_nums])
    return (sizes.sum() / (len(sizes) * sizes)).repeat_interleave(sizes)


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
