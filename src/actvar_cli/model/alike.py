"""Tokens of a scale that all rows leave out alike: known by their places, not looked for one by one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from actvar_cli.model.neighbours import mean_of_computed


@dataclass(frozen=True)
class Pattern:
    """The places (m,) of the tokens that are ``kept`` and (n,) of the ``rest``.

    ``order`` (l,) brings both, one after the other, back to where they belong; ``near`` (n, m) are the weights of the
    computed tokens around each of the rest, as in `mean_of_computed`.
    """

    kept: Tensor
    rest: Tensor
    order: Tensor
    near: Tensor

    def mean(self, x: Tensor) -> Tensor:
        """The means (R, n, C) of the kept tokens ``x`` (R, m, C) around each of the rest."""
        return self.near.to(x.dtype) @ x

    def together(self, kept: Tensor, rest: Tensor) -> Tensor:
        """All tokens (R, l, C) of those ``kept`` (R, m, C) and the ``rest`` (R, n, C)."""
        return torch.cat((kept, rest), dim=1).index_select(1, self.order)


@lru_cache
def pattern_of(keep: tuple[bool, ...], side: int, device: torch.device) -> Pattern:
    """The pattern of the tokens to ``keep``, of a scale of ``side``² tokens."""
    # Ordinary tensors, whatever the first who asks for them is about.
    with torch.inference_mode(False):
        mask = torch.tensor(keep, device=device)
        kept, rest = mask.nonzero().squeeze(1), (~mask).nonzero().squeeze(1)
        each = torch.eye(len(keep), device=device)
        near = mean_of_computed(each[None], mask[None], side)[0, rest][:, kept]
        return Pattern(kept, rest, torch.cat((kept, rest)).argsort(), near)
