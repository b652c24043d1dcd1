"""What the stages' training loops have in common."""

from __future__ import annotations

import math

import torch

from actvar_cli.model.device import fast_bf16


def learning_rate(step: int, steps: int) -> float:
    """Factor of the learning rate: linear over the first tenth, then a cosine down to nothing."""
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def mixed_precision(precision: str, device: torch.device) -> str:
    """What accelerate calls ``auto``, ``no`` or ``bf16`` on ``device``."""
    return "bf16" if precision == "bf16" or (precision == "auto" and fast_bf16(device)) else "no"
