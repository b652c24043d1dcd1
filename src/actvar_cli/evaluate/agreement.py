"""How far a student's predictions are from its teacher's, token by token, on given sequences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from actvar_cli.model.guidance import guidance_by_position, guide
from actvar_cli.model.sampling import ActVAR, SamplingSettings, paired_rows, sample_latent, single_rows

_LOGITS_AT_ONCE = 2**25
"""Logits of one model that are in memory together: 128 MiB of float32."""


@dataclass
class AgreementSums:
    """Running sums over tokens: KL divergence (nats) and equal first choices of each scale, ``tokens`` counted."""

    kl: Tensor
    equal: Tensor
    tokens: Tensor

    @classmethod
    def empty(cls, scales: int) -> AgreementSums:
        """Nothing counted yet."""
        return cls(*(torch.zeros(scales, dtype=torch.float64) for _ in range(3)))


@torch.no_grad()
def guided_logits(model: ActVAR, labels: Tensor, tokens: Tensor, cfg: float) -> Tensor:
    """The logits (B, L, V) that ``model`` draws from when all earlier scales are ``tokens`` (B, L)."""
    if model.setting.paired_scales:
        # Begun by the original, which a pass over the whole sequence cannot be.
        logits: list[Tensor] = []
        sample_latent(model, labels, SamplingSettings(cfg), None, None, logits, tokens.long())
        return torch.cat(logits, dim=1)
    context = model.transformer.teacher_forced(model.threshold, cfg=cfg)
    if context.strength is not None:
        return model.transformer(*single_rows(model, labels, tokens), context)  # type: ignore[no-any-return]
    both = model.transformer(*paired_rows(model, labels, tokens), context)
    return guide(both, guidance_by_position(model.config, cfg, model.device))


@torch.no_grad()
def add_agreement(
    sums: AgreementSums, student: ActVAR, teacher: ActVAR, labels: Tensor, tokens: Tensor, cfg: float
) -> None:
    """Add to ``sums`` the agreement on ``tokens`` (B, L), sampled by the teacher for ``labels`` (B,).

    KL is teacher against student, ``sum p log(p / q)``, before top-k and top-p; in parts, so that memory stays small.
    """
    scale_of = teacher.transformer.lvl_1L[0].cpu()
    size = max(1, _LOGITS_AT_ONCE // (2 * tokens.shape[1] * teacher.config.tokenizer.vocab_size))
    for y, sequence in zip(labels.split(size), tokens.split(size), strict=True):
        p = guided_logits(teacher, y, sequence, cfg).log_softmax(-1)
        q = guided_logits(student, y, sequence, cfg).log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1).sum(0).cpu().double()
        equal = (p.argmax(-1) == q.argmax(-1)).sum(0).cpu().double()
        sums.kl.index_add_(0, scale_of, kl)
        sums.equal.index_add_(0, scale_of, equal)
        sums.tokens.index_add_(0, scale_of, torch.full_like(kl, len(y)))
