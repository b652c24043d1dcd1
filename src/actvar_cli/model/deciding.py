"""What router and token gate have in common: they score, and what exceeds a threshold is computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from actvar_cli.model.kernels.usable import preferred
from actvar_cli.model.products import Linear, fitted


class Decider(nn.Module, ABC):
    """Scores tokens (…, C), or the experts of each."""

    @abstractmethod
    def score(self, x: Tensor, *scale: Any) -> Tensor:
        """The scores of ``x``, and nothing else."""

    def forward(self, x: Tensor, *scale: Any, above: float | None = None) -> Tensor:
        """`score` of ``x``, or which of them exceed ``above``; ``scale`` where it matters."""
        made = self.score(x, *scale)
        return made if above is None else made > above


class Perceptron(Decider):
    """Two layers with GELU between, from tokens (…, C) to (…, E); the weights of the second are float32 in any case."""

    def __init__(self, dim: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, outputs)

    def score(self, x: Tensor, *scale: Any) -> Tensor:
        """What the second layer makes of ``x``, whatever the scale."""
        hidden = self.fc1(fitted(x, self.fc1.weight), gelu=True)
        return self.fc2(hidden.to(self.fc2.weight.dtype))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, *scale: Any, above: float | None = None) -> Tensor:
        """See `Decider.forward`; decisions are made in one pass by a GPU."""
        if above is None or x.dtype != self.fc1.weight.dtype or not preferred(x):
            return super().forward(x, *scale, above=above)
        from actvar_cli.model.kernels.scores import exceed

        return exceed(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, above)
