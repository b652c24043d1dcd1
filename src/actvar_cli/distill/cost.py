"""The cost of a teacher-forced pass as a differentiable number, in the same MACs that sampling is counted in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from actvar_cli.model.block import Decisions
from actvar_cli.model.config import ModelConfig
from actvar_cli.model.counters import (
    adaln_macs,
    attention_macs,
    dense_macs,
    embed_macs,
    ffn_macs,
    gate_macs,
    head_macs,
    reconstruction_macs,
    router_macs,
)


class CostModel:
    """Turns a batch's decisions into the cost of one image: work as a share of the dense model's.

    The batch holds all rows of every image, two or with guidance learned one, so its mean over rows times their number
    is one image's work.
    """

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self.config = config
        tok = config.tokenizer
        sizes = [pn * pn for pn in tok.patch_nums]
        lengths = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        per_token = [(attention_macs(config, 1, 0, length), attention_macs(config, 0, 1, length)) for length in lengths]
        repeats = torch.tensor(sizes)

        def spread(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32).repeat_interleave(repeats).to(device)

        self.computed = spread([c for c, _ in per_token])
        self.skipped = spread([s + reconstruction_macs(config, 1, 0) for _, s in per_token])
        # What a computed token costs where any other of its scale is skipped.
        self.read = reconstruction_macs(config, 1, 1) - reconstruction_macs(config, 1, 0)
        self.sizes = sizes
        self.gated = spread(
            [
                gate_macs(config, 1) if config.token_gate and i in config.token_gate.scales else 0
                for i in range(len(sizes))
            ]
        )
        self.experts = [config.experts_in(block) for block in range(config.transformer.depth)]
        self.pair = [ffn_macs(config, 1, count) for count in self.experts]
        self.router = [router_macs(config, 1, count) for count in self.experts]
        self.skips_attention = config.token_gate is not None and config.token_gate.skips == "attention"
        length = tok.num_tokens
        self.fixed = adaln_macs(config, 2) + sum(head_macs(config, 2, config.rows * n) for n in sizes)
        self.fixed += embed_macs(config, length - sizes[0])
        self.dense = dense_macs(config)

    def most(self) -> float:
        """The cost with every expert on and every token computed."""
        return self._with_experts(torch.ones)

    def whole(self) -> float:
        """The cost where nothing is left out and nothing asked, neither routers nor token gates."""
        return float(self([Decisions()] * len(self.pair)))

    def least_by_experts(self) -> float:
        """The cost with no expert on, if a router can turn them off, and still every token computed."""
        experts = self.config.experts
        return self.most() if experts and experts.router == "none" else self._with_experts(torch.zeros)

    def _with_experts(self, on: Callable[..., Tensor]) -> float:
        every = [on(1, len(self.computed), self.config.experts_in(b)) for b in range(len(self.pair))]
        return float(self([Decisions(on=on.to(self.computed)) for on in every]))

    def __call__(self, decisions: list[Decisions]) -> Tensor:
        """Cost (a scalar) of the decisions of all blocks; all experts are on where nobody was asked."""
        total = self.computed.new_zeros(())
        for made, pair, router, experts in zip(decisions, self.pair, self.router, self.experts, strict=True):
            # (B, L), or (1, L) where nobody was asked.
            ffn = torch.full_like(self.computed[None], experts * pair)
            if made.on is not None:
                ffn = made.on.float().sum(-1) * pair + router
            attention = self.computed
            if made.keep is not None:
                keep = made.keep.float()
                any_skipped = [(scale < 1).any().expand_as(scale) for scale in keep.split(self.sizes, dim=1)]
                computed = self.computed + self.read * torch.cat(any_skipped, dim=1)
                attention = keep * computed + (1 - keep) * self.skipped + self.gated
                if not self.skips_attention:
                    ffn = keep * ffn
            work = ffn + attention
            total = total + work.sum(1).mean()
        return (self.config.rows * total + self.fixed) / self.dense
