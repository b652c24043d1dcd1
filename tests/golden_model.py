"""Models whose weights follow the rule of tests/golden/README.md, as the published implementation was given them."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actvar_cli.model.config import ModelConfig, TokenizerConfig, TransformerConfig
from actvar_cli.model.sampling import ActVAR
from actvar_cli.model.tokenizer import Tokenizer
from actvar_cli.model.var import VAR

FOLDER = Path(__file__).parent / "golden"
CASES = sorted(p.stem for p in FOLDER.glob("*.json"))
CONSTANT = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias", "ema_vocab_hit_SV")


def golden_value(key: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor that the rule gives for a key of a published state dict."""
    n = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if "norm" in key and key.endswith(".weight"):
        n = 1 + 0.05 * n
    elif key.endswith("scale_mul_1H11"):
        n = math.log(4) + 0.1 * n
    elif len(shape) >= 2 and "ada_gss" not in key and not key.startswith("pos"):
        n = 0.7 / np.sqrt(np.prod(shape[1:])) * n
    else:
        n = 0.05 * n
    return torch.from_numpy(np.asarray(n, dtype=np.float32))


def golden_state_dict(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """All keys of ``shapes`` that the rule covers."""
    return {k: golden_value(k, tuple(s)) for k, s in shapes.items() if not k.endswith(CONSTANT)}


def spec(name: str) -> dict[str, Any]:
    """The constructor's values and the published shapes of a case."""
    return json.loads((FOLDER / f"{name}.json").read_text())  # type: ignore[no-any-return]


def config_of(name: str) -> ModelConfig:
    """The case's configuration in this project's words."""
    c = spec(name)["config"]
    return ModelConfig(
        name=name,
        tokenizer=TokenizerConfig(
            vocab_size=c["vocab_size"], z_channels=c["z_channels"], ch=c["ch"], patch_nums=tuple(c["patch_nums"])
        ),
        transformer=TransformerConfig(
            depth=c["depth"],
            embed_dim=c["embed_dim"],
            num_heads=c["num_heads"],
            num_classes=c["num_classes"],
            shared_aln=c["shared_aln"],
            attn_l2_norm=c["attn_l2_norm"],
        ),
    )


def fill(module: nn.Module, shapes: dict[str, list[int]]) -> None:
    """Give a module its golden weights; every key that the rule covers must exist and nothing else may be missing."""
    missing, unexpected = module.load_state_dict(golden_state_dict(shapes), strict=False)
    assert not unexpected
    assert all(k.endswith(CONSTANT) for k in missing), missing


def golden_model(name: str) -> ActVAR:
    """The case's model."""
    config, shapes = config_of(name), spec(name)["state_dict_shapes"]
    model = ActVAR(config, VAR(config), Tokenizer(config.tokenizer)).eval()
    fill(model.transformer, shapes["var"])
    fill(model.tokenizer, shapes["vae"])
    return model
