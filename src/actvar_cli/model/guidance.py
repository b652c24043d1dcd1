"""Classifier-free guidance, from two rows as published, or from one row that has learned what guidance makes of both.

Source: guidance arXiv 2207.12598; learning its result, arXiv 2210.03142, is done here by embeddings alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from actvar_cli.model.config import ModelConfig


def guidance_at(scale: int, scales: int, cfg: float) -> float:
    """The strength of guidance at one of ``scales`` scales: rises linearly from 0 to ``cfg``, as published."""
    return cfg * scale / max(1, scales - 1)


def guide(logits: Tensor, guidance: float | Tensor) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598): ``(1 + t) conditional - t unconditional``.

    ``logits`` (2B, l, V) hold the rows with their class, then those without; ``guidance`` t is one number, or (l, 1)
    for one per position. Returns (B, l, V).
    """
    conditional, unconditional = logits.chunk(2)
    return (1 + guidance) * conditional - guidance * unconditional


def guidance_by_position(config: ModelConfig, cfg: float, device: torch.device | None = None) -> Tensor:
    """`guidance_at` for every position of the sequence, (L, 1): what `guide` takes for a whole sequence."""
    patch_nums = config.tokenizer.patch_nums
    strengths = torch.tensor([guidance_at(scale, len(patch_nums), cfg) for scale in range(len(patch_nums))])
    return strengths.repeat_interleave(torch.tensor([pn * pn for pn in patch_nums])).unsqueeze(1).to(device)


class GuidanceEmbedding(nn.Module):
    """Makes the row with a class predict what guidance would make of it and the row without one.

    ``classes`` (classes, C) is added to the class embedding that AdaLN reads, ``scales`` (S, C) to every token of a
    scale. Both take part in proportion to the strength of guidance: at the first scale, where that is 0, and at cfg 0,
    the row is the original one. Born without effect.
    """

    def __init__(self, num_classes: int, num_scales: int, dim: int) -> None:
        super().__init__()
        self.classes = nn.Parameter(torch.zeros(num_classes, dim))
        self.scales = nn.Parameter(torch.zeros(num_scales, dim))

    def conditions(self, cond: Tensor, labels: Tensor) -> Tensor:
        """What AdaLN reads without and with guidance, (B, 2, C), for the class embeddings ``cond`` (B, C)."""
        return torch.stack((cond, cond + self.classes[labels]), dim=1)


def blend(made: Tensor, strength: float | Tensor | None) -> Tensor:
    """AdaLN parameters between those without and those with guidance.

    ``made`` (R, 2, n, C) at a ``strength`` that is one number gives (R, n, C), at one per position (l, 1) gives
    (R, n, l, C). With ``strength`` ``None``, guidance is not learned: ``made`` (R, n, C) stays what it is.
    """
    if strength is None:
        return made
    plain, guided = made.unbind(1)
    if isinstance(strength, Tensor):
        return torch.lerp(plain.unsqueeze(2).float(), guided.unsqueeze(2).float(), strength)
    return torch.lerp(plain, guided, strength)


def over_tokens(ada: Tensor) -> tuple[Tensor, ...]:
    """AdaLN parameters (R, n, C) or (R, n, l, C) apart: n times (R, 1 or l, C), to go with tokens (R, l, C)."""
    return (ada if ada.dim() == 4 else ada.unsqueeze(2)).unbind(1)
