"""Classifier-free guidance, from two rows as published, or from one row that has learned what guidance makes of both.

Source: guidance arXiv 2207.12598; learning its result, arXiv 2210.03142, is done here by embeddings alone. That the row
which goes on reads what guidance makes of both rows' keys and values is ours (docs/method.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actvar_cli.model.cache import KVCache
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


class GuidedContext(nn.Module):
    """Makes one row's keys and values of those of both, for the row that goes on where both have begun.

        guided = conditional + a (conditional - unconditional)

    as guidance puts logits together, with an ``a`` that is learned for every channel of each block and scale: ``keys``
    and ``values`` (depth, S, C). It takes part in proportion to the strength of guidance. Born without effect.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        arch, patch_nums = config.transformer, config.tokenizer.patch_nums
        self.keys = nn.Parameter(torch.zeros(arch.depth, len(patch_nums), arch.embed_dim))
        self.values = nn.Parameter(torch.zeros_like(self.keys))
        self.heads, self.unit_keys = arch.num_heads, arch.attn_l2_norm
        self.sizes = [pn * pn for pn in patch_nums]

    def forward(self, block: int, keys: Tensor, values: Tensor, strength: float) -> tuple[Tensor, Tensor]:
        """Those (B, H, n, d) of one row for ``keys`` and ``values`` (2B, H, n, d), as a `KVCache` has them.

        They are those of the first scales, whole ones; the rows with a class come first. ``strength`` is a share of the
        one that was learned.
        """
        length = keys.shape[2]
        (key, other_key), (value, other_value) = keys.float().chunk(2), values.float().chunk(2)
        guided = torch.lerp(key, other_key, self._share(self.keys[block], length, strength))
        if self.unit_keys:
            guided = F.normalize(guided, dim=-1)
        return guided, torch.lerp(value, other_value, self._share(self.values[block], length, strength))

    def guide(self, cache: KVCache, strength: float) -> None:
        """Put them in the place of those of the first half of the rows in ``cache``.

        In as few passes over memory as can be, which is all that takes time here: only keys that are to be made units
        are float32 in between.
        """
        for block in range(len(self.keys)):
            keys, values = cache.filled(block)
            for both, shares in ((keys, self.keys), (values, self.values)):
                first, second = both.chunk(2)
                share = self._share(shares[block], both.shape[2], strength)
                if both is keys and self.unit_keys:
                    guided = torch.lerp(first.float(), second.float(), share)
                    first.copy_(F.normalize(guided, dim=-1, out=guided))
                else:
                    torch.lerp(first, second, share.to(both.dtype), out=first)

    def _share(self, shares: Tensor, length: int, strength: float) -> Tensor:
        """How far the first ``length`` tokens go from the row with a class to the other, by channel: (H, length, d)."""
        by_token = [share.expand(size, -1) for share, size in zip(shares, self.sizes, strict=True)]
        by_head: Tensor = torch.cat(by_token)[:length].unflatten(-1, (self.heads, -1))
        return -strength * by_head.transpose(0, 1)


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
