"""The token gate and the reconstruction: compute only tokens that still change, stand in for the rest.

Source: ActVAR (arXiv 2511.12893); the reconstruction is ours (docs/method.md).
"""

from __future__ import annotations

from torch import Tensor, nn

from actvar_cli.model.products import Linear


class TokenGate(nn.Module):
    """Scores a token (…, C) by how wrong its reconstruction would be, in the units of the router's scores."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, 1)

    def forward(self, h: Tensor) -> Tensor:
        """Scores (…) of the block's input ``h`` (…, C), after AdaLN."""
        return self.fc2(self.fc1(h, gelu=True)).squeeze(-1)  # type: ignore[no-any-return]


class Reconstruction(nn.Module):
    """A low-rank linear map from the block's input, after AdaLN, to the block's whole update."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.down = Linear(dim, rank, bias=False)
        self.up = Linear(rank, dim)

    def forward(self, h: Tensor) -> Tensor:
        """Map (…, C) to the update (…, C) that stands in for the block's."""
        return self.up(self.down(h.to(self.down.weight.dtype)))  # type: ignore[no-any-return]
