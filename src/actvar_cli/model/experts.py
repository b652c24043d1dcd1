"""The FFN as experts: groups of hidden neurons that can be left out token by token.

The neurons are the original ones, permuted so that every expert is a contiguous slice. An expert that is off is
replaced by its mean output, a constant: with all experts on, the sum is the original FFN.

Source: MoEfication (arXiv 2110.01786) for the split; ActVAR (arXiv 2511.12893) for experts in VAR.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actvar_cli.model import dispatch
from actvar_cli.model.config import TransformerConfig
from actvar_cli.model.kernels.usable import fits
from actvar_cli.model.products import Linear, fitted, lacking, linear

if TYPE_CHECKING:
    from actvar_cli.model.kernels.tiles import Tiles


class FFN(nn.Module):
    """The published feed-forward network: Linear, GELU (tanh), Linear."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.embed_dim, config.hidden_dim)
        self.fc2 = Linear(config.hidden_dim, config.embed_dim)
        self.fits_kernels = fits(config)

    def hidden(self, x: Tensor) -> Tensor:
        """What the second layer reads, (…, hidden), in the type of products with the weights."""
        return self.fc1(fitted(x, self.fc1.weight), gelu=True)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, C) to (…, C), in the type of products with the weights."""
        if x.dim() == 2 and (more := lacking(len(x), self.fc1.weight)):
            # Here, so that what the second layer reads need not be copied to be filled up.
            return self.forward(F.pad(x, (0, 0, 0, more)))[: len(x)]
        return self.fc2(self.hidden(x))  # type: ignore[no-any-return]


class ExpertFFN(FFN):
    """The same network with the neurons grouped into experts.

    ``permutation`` (hidden,) holds, for each neuron here, its index in the original; ``expert_mean`` (E, C) the mean
    output of each expert, which stands in for it where it is off.
    """

    permutation: Tensor

    def __init__(self, config: TransformerConfig, num_experts: int) -> None:
        super().__init__(config)
        self.num_experts = num_experts
        self.fits_kernels = fits(config, num_experts)
        self.expert_dim = config.hidden_dim // num_experts
        self.register_buffer("permutation", torch.arange(config.hidden_dim))
        self.expert_mean = nn.Parameter(torch.zeros(num_experts, config.embed_dim))

    def forward(self, x: Tensor, on: Tensor | Tiles | None = None) -> Tensor:
        """Map (…, C) to (…, C) with the experts that are ``on`` (…, E), or all of them for tokens in ``on``, `Tiles`.

        ``on=None`` computes all. A boolean ``on`` with ``x`` (N, C) skips the others for real; a floating one masks a
        dense computation and lets gradients through, for training.
        """
        if on is None:
            return super().forward(x)
        if not isinstance(on, Tensor):
            return dispatch.whole(self, x, on)
        return dispatch.run(self, x, on) if on.dtype == torch.bool else self.masked(x, on)

    def masked_hidden(self, x: Tensor, on: Tensor) -> Tensor:
        """What the second layer reads, (…, hidden), with zeros where an expert is not ``on`` (…, E, floating)."""
        hidden = self.hidden(x).unflatten(-1, (self.num_experts, self.expert_dim))
        mask = on.unsqueeze(-1).to(hidden.dtype)
        # In place where no gradient forbids it: at small widths another pass takes a good part of a product's time.
        hidden = hidden * mask if torch.is_grad_enabled() else hidden.mul_(mask)
        return hidden.flatten(-2)  # type: ignore[no-any-return]

    def masked(self, x: Tensor, on: Tensor) -> Tensor:
        """A dense computation in which an expert that is not ``on`` (…, E, floating) gives its mean."""
        return self.fc2(self.masked_hidden(x, on)) + (1 - on) @ self.expert_mean  # type: ignore[no-any-return]

    def _part(self, first: int, last: int | None = None) -> slice:
        return slice(first * self.expert_dim, (first + 1 if last is None else last) * self.expert_dim)

    def hidden_of(self, expert: int, x: Tensor, last: int | None = None) -> Tensor:
        """One expert's neurons, (…, hidden / E), for ``x`` (…, C); with ``last`` also those of the next, before it."""
        part = self._part(expert, last)
        return linear(x, self.fc1.weight[part], self.fc1.bias[part], gelu=True)

    def output_of(self, expert: int, hidden: Tensor, bias: Tensor | None = None, last: int | None = None) -> Tensor:
        """What comes of the neurons of `hidden_of`, plus ``bias`` (C,): (…, C)."""
        return F.linear(hidden, self.weight_of(expert, last), None if bias is None else bias.to(hidden.dtype))

    def weight_of(self, expert: int, last: int | None = None) -> Tensor:
        """What `output_of` multiplies by, (C, hidden / E)."""
        return fitted(self.fc2.weight[:, self._part(expert, last)], self.fc2.weight)
