"""The router: scores a token's experts.

A score is the logarithm of what leaving the expert out would cost, in units that are common to all blocks, so that one
threshold serves the whole model. An expert is on where its score exceeds that threshold.

``learned`` is the product's own; the other kinds are what it is compared with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from actvar_cli.model.config import EVERYTHING, ModelConfig
from actvar_cli.model.deciding import Decider, Perceptron

CERTAIN = -EVERYTHING
"""A score above every threshold."""


class Router(Perceptron):
    """Two-layer perceptron from a token (…, C), the FFN's input after AdaLN, to the scores (…, E) of its experts."""


class RelativeRouter(Router):
    """Scores relative to the token's best expert, which has 0: DMoE-VAR's threshold."""

    forward = Decider.forward

    def score(self, x: Tensor, *scale: Any) -> Tensor:
        """Scores, the highest of a token being 0."""
        made = super().score(x)
        return made - made.amax(-1, keepdim=True)


class StaticRouter(Decider):
    """The same scores (E,) for every token: what is off is off for good, as in structured pruning."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(num_experts))

    def score(self, x: Tensor, *scale: Any) -> Tensor:
        """The scores, for each token of ``x`` (…, C)."""
        return self.scores.expand(*x.shape[:-1], -1)


class RandomRouter(Decider):
    """Scores drawn at random, the same ones for an input of the same shape."""

    def __init__(self, num_experts: int, seed: int) -> None:
        super().__init__()
        self.num_experts, self.seed = num_experts, seed

    def score(self, x: Tensor, *scale: Any) -> Tensor:
        """Logistic noise, (…, E)."""
        generator = torch.Generator(x.device).manual_seed(self.seed)
        return torch.rand(*x.shape[:-1], self.num_experts, generator=generator, device=x.device).logit(1e-6)


class NoRouter(Decider):
    """Every expert on for every token, whatever the threshold: token gates alone are left to save work."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    def score(self, x: Tensor, *scale: Any) -> Tensor:
        """Scores above every threshold, (…, E)."""
        return x.new_full((*x.shape[:-1], self.num_experts), CERTAIN)


def router_of(config: ModelConfig, block: int) -> Decider:
    """The router of the kind that ``config`` names, for ``block``."""
    assert config.experts is not None
    kind, experts = config.experts.router, config.experts_in(block)
    if kind == "static":
        return StaticRouter(experts)
    if kind == "random":
        return RandomRouter(experts, block)
    if kind == "none":
        return NoRouter(experts)
    by_token = RelativeRouter if kind == "relative" else Router
    return by_token(config.transformer.embed_dim, config.experts.router_dim, experts)


def straight_through(scores: Tensor, threshold: float | Tensor, temperature: float) -> Tensor:
    """A 0/1 decision per score whose gradient is that of a sigmoid (arXiv 1308.3432).

    ``threshold`` and ``temperature`` are in the units of the scores. Shape (…) to (…).
    """
    logits = scores - threshold
    soft = torch.sigmoid(logits / temperature)
    hard = (logits > 0).to(soft.dtype)
    return hard + soft - soft.detach()
