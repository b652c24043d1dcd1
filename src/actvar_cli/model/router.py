"""The router: scores a token's experts.

A score is the logarithm of what leaving the expert out would cost, in units that are common to all blocks, so that one
threshold serves the whole model. An expert is on where its score exceeds that threshold.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from actvar_cli.model.products import Linear


class Router(nn.Module):
    """Two-layer perceptron from a token (…, C) to the scores (…, E) of its experts."""

    def __init__(self, dim: int, hidden: int, num_experts: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, num_experts)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the FFN's input ``x``, after AdaLN."""
        return self.fc2(self.fc1(x, gelu=True))  # type: ignore[no-any-return]


def straight_through(scores: Tensor, threshold: float | Tensor, temperature: float) -> Tensor:
    """A 0/1 decision per score whose gradient is that of a sigmoid (arXiv 1308.3432).

    ``threshold`` and ``temperature`` are in the units of the scores. Shape (…) to (…).
    """
    logits = scores - threshold
    soft = torch.sigmoid(logits / temperature)
    hard = (logits > 0).to(soft.dtype)
    return hard + soft - soft.detach()
