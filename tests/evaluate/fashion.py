"""A tiny model that passes for `var-fashion`, and a stand-in for the shipped assets, with random weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from actvar_cli.evaluate import reference
from actvar_cli.evaluate.distance import moments
from actvar_cli.evaluate.features import FeatureClassifier
from actvar_cli.model.config import ExpertsConfig, ModelConfig, TokenGateConfig, TokenizerConfig, TransformerConfig
from actvar_cli.model.sampling import ActVAR
from actvar_cli.model.tokenizer import Tokenizer
from actvar_cli.model.var import VAR
from actvar_cli.weights import fashion


def tiny_fashion(*, sparse: bool = False, seed: int = 0) -> ActVAR:
    """Two blocks of width 32, 10 classes, 32 x 32 grey images; the same teacher weights with experts or without."""
    config = ModelConfig(
        name="var-fashion",
        tokenizer=TokenizerConfig(
            vocab_size=32, z_channels=8, ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, in_channels=1, patch_nums=(1, 4, 8)
        ),
        transformer=TransformerConfig(depth=2, embed_dim=32, num_heads=2, num_classes=10),
        experts=ExpertsConfig(num_experts=4, router_dim=8) if sparse else None,
        token_gate=TokenGateConfig(scales=(1, 2), gate_dim=4, rank=4) if sparse else None,
    )
    torch.manual_seed(0)
    tokenizer = Tokenizer(config.tokenizer)
    torch.manual_seed(seed)
    dense = ActVAR(config, VAR(config.model_copy(update={"experts": None, "token_gate": None})), tokenizer)
    if not sparse:
        return dense.eval()
    transformer = VAR(config)
    transformer.load_state_dict(dense.transformer.state_dict(), strict=False)
    return ActVAR(config, transformer, dense.tokenizer).eval()


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `tiny_fashion` be judged as `var-fashion` is."""
    monkeypatch.setattr(reference, "_asset", fake_asset)
    monkeypatch.setattr(fashion, "codebook", lambda: tiny_fashion().tokenizer.quantize.embedding.weight.detach())


def fake_asset(file: str) -> dict[str, Tensor]:
    """What `reference._asset` reads, made up."""
    generator = torch.Generator().manual_seed(0)
    if "classifier" in file:
        torch.manual_seed(0)
        return FeatureClassifier().state_dict()
    if "stats" in file:
        stats = {}
        for split in ("test", "train"):
            mu, cov = moments(torch.randn(500, 128, generator=generator).relu())
            stats |= {f"{split}.mu": mu, f"{split}.cov": cov}
        return stats
    images = torch.randint(0, 256, (40, 1, 32, 32), generator=generator, dtype=torch.uint8)
    return {"images": images, "labels": torch.arange(40) % 10}
