"""The FFN as experts: groups of hidden neurons that can be left out token by token.

The neurons are the original ones, permuted so that every expert is a contiguous slice. An expert that is off is
replaced by its mean output, a constant: with all experts on, the sum is the original FFN.

Source: MoEfication (arXiv 2110.01786) for the split; ActVAR (arXiv 2511.12893) for experts in VAR.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actvar_cli.model.config import TransformerConfig
from actvar_cli.model.products import Linear


class FFN(nn.Module):
    """The published feed-forward network: Linear, GELU (tanh), Linear."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.embed_dim, config.hidden_dim)
        self.fc2 = Linear(config.hidden_dim, config.embed_dim)

    def hidden(self, x: Tensor) -> Tensor:
        """What the second layer reads, (…, hidden), in the type of the weights."""
        return self.fc1(x.to(self.fc1.weight.dtype), gelu=True)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, C) to (…, C), in the type of the weights."""
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
        self.expert_dim = config.hidden_dim // num_experts
        self.register_buffer("permutation", torch.arange(config.hidden_dim))
        self.expert_mean = nn.Parameter(torch.zeros(num_experts, config.embed_dim))

    def forward(self, x: Tensor, on: Tensor | None = None) -> Tensor:
        """Map (…, C) to (…, C) with the experts that are ``on`` (…, E).

        ``on=None`` computes all. A boolean ``on`` with ``x`` (N, C) skips the others for real; a floating one masks a
        dense computation and lets gradients through, for training.
        """
        if on is None:
            return super().forward(x)
        return self._skip(x, on) if on.dtype == torch.bool else self._mask(x, on)

    def masked_hidden(self, x: Tensor, on: Tensor) -> Tensor:
        """What the second layer reads, (…, hidden), with zeros where an expert is not ``on`` (…, E, floating)."""
        hidden = self.hidden(x).unflatten(-1, (self.num_experts, self.expert_dim))
        return (hidden * on.unsqueeze(-1).to(hidden.dtype)).flatten(-2)  # type: ignore[no-any-return]

    def _mask(self, x: Tensor, on: Tensor) -> Tensor:
        return self.fc2(self.masked_hidden(x, on)) + (1 - on) @ self.expert_mean  # type: ignore[no-any-return]

    def _skip(self, x: Tensor, on: Tensor) -> Tensor:
        x = x.to(self.fc1.weight.dtype)
        by_expert = on.T.contiguous()
        counts = by_expert.sum(1).tolist()
        if min(counts) == len(x):
            return super().forward(x)
        # The means are float32 whatever the weights are, and so is the sum over the experts.
        out = (self.fc2.bias + self.expert_mean.sum(0)).repeat(len(x), 1)
        for e, tokens in enumerate(by_expert.nonzero()[:, 1].split(counts)):
            if counts[e] == 0:
                continue
            some = x if counts[e] == len(x) else x.index_select(0, tokens)
            y = self.output_of(e, self.hidden_of(e, some), -self.expert_mean[e])
            if some is x:
                out.add_(y)
            else:
                out.index_add_(0, tokens, y.to(out.dtype))
        return out

    def _part(self, expert: int) -> slice:
        return slice(expert * self.expert_dim, (expert + 1) * self.expert_dim)

    def hidden_of(self, expert: int, x: Tensor) -> Tensor:
        """One expert's neurons, (…, hidden / E), for ``x`` (…, C)."""
        part = self._part(expert)
        # Plain products: the number of rows differs from call to call, and oneDNN would keep a way for every number.
        return F.gelu(F.linear(x, self.fc1.weight[part], self.fc1.bias[part]), approximate="tanh")

    def output_of(self, expert: int, hidden: Tensor, bias: Tensor | None = None) -> Tensor:
        """What one expert makes of its neurons ``hidden`` (…, hidden / E), plus ``bias`` (C,): (…, C)."""
        return F.linear(hidden, self.fc2.weight[:, self._part(expert)], None if bias is None else bias.to(hidden.dtype))
