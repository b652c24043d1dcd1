"""Tiny random models for tests: real architecture, milliseconds to run."""

from __future__ import annotations

import torch

from actvar_cli.model.config import (
    DeltaConfig,
    ExpertsConfig,
    GuidanceConfig,
    ModelConfig,
    TokenGateConfig,
    TokenizerConfig,
    TransformerConfig,
)
from actvar_cli.model.sampling import ActVAR
from actvar_cli.model.tokenizer import Tokenizer
from actvar_cli.model.var import VAR


def tiny_config(
    *,
    experts: bool | tuple[int, ...] = False,
    token_gate: bool = False,
    shared_aln: bool = False,
    guidance: bool = False,
    context: bool = False,
    delta: bool = False,
) -> ModelConfig:
    """Two blocks of width 32, three scales, 32 codes, 3 classes, 6 x 6 grey images; ``experts`` are 4, or by block."""
    return ModelConfig(
        name="tiny",
        tokenizer=TokenizerConfig(
            vocab_size=32, z_channels=8, ch=32, ch_mult=(1, 1), num_res_blocks=1, in_channels=1, patch_nums=(1, 2, 3)
        ),
        transformer=TransformerConfig(depth=2, embed_dim=32, num_heads=2, num_classes=3, shared_aln=shared_aln),
        experts=ExpertsConfig(num_experts=4 if experts is True else experts, router_dim=8) if experts else None,
        token_gate=TokenGateConfig(scales=(1, 2), gate_dim=4, rank=4) if token_gate else None,
        guidance=GuidanceConfig(cfg=1.5, context=context) if guidance else None,
        delta=DeltaConfig(thresholds=(0.0, 1.0)) if delta else None,
    )


def tiny_model(
    *,
    seed: int = 0,
    experts: bool | tuple[int, ...] = False,
    token_gate: bool = False,
    shared_aln: bool = False,
    guidance: bool = False,
    context: bool = False,
    delta: bool = False,
) -> ActVAR:
    """A tiny model with random weights, in eval mode; all have the same tokenizer."""
    config = tiny_config(
        experts=experts, token_gate=token_gate, shared_aln=shared_aln, guidance=guidance, context=context, delta=delta
    )
    torch.manual_seed(seed)
    model = ActVAR(config, VAR(config), Tokenizer(config.tokenizer)).eval()
    for name, parameter in model.named_parameters():
        if "token_gate" in name or "router" in name or "expert_mean" in name or "guidance" in name:
            torch.nn.init.normal_(parameter, std=0.3)
        if "context" in name:
            torch.nn.init.normal_(parameter, std=0.5)
        if "delta" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    torch.manual_seed(0)
    model.tokenizer.load_state_dict(Tokenizer(config.tokenizer).state_dict())
    return model
