"""Which tokens of a scale are computed and which are the rest: alike in all rows, row by row, or as a mask.

Every kind takes tokens apart, says what those around tell about the rest, and puts all together again. What is apart is
(R, m, C) and (R, n, C) where rows are alike, (N, C) of all rows where they are not, and the whole (R, l, C) as a mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from actvar_cli.model.neighbours import Around, mean_of_computed, weights_of_computed


@dataclass(frozen=True)
class Alike:
    """The places (m,) of the tokens that are ``kept`` and (n,) of the ``rest``, the same in all rows.

    ``order`` (l,) brings both, one after the other, back to where they belong; ``near`` (n, m) are the weights of the
    computed tokens around each of the rest, as in `mean_of_computed`.
    """

    kept: Tensor
    rest: Tensor
    order: Tensor
    near: Tensor

    def of_kept(self, x: Tensor) -> Tensor:
        """Those of the tokens ``x`` (R, l, C) that are kept."""
        return x.index_select(1, self.kept)

    def of_rest(self, x: Tensor) -> Tensor:
        """Those of the tokens ``x`` (R, l, C) that are not."""
        return x.index_select(1, self.rest)

    def mean(self, kept: Tensor) -> Tensor:
        """The means of the ``kept`` tokens around each of the rest."""
        return self.near.to(kept.dtype) @ kept

    def beside(self, x: Tensor) -> Tensor:
        """How the rest of the tokens ``x`` (R, l, C) differ from the means of the kept ones around them."""
        return self.of_rest(x) - self.mean(self.of_kept(x))

    def together(self, kept: Tensor, rest: Tensor) -> Tensor:
        """All tokens (R, l, C) of those ``kept`` and the ``rest``."""
        return torch.cat((kept, rest), dim=1).index_select(1, self.order)


@lru_cache
def alike(keep: tuple[bool, ...], side: int, device: torch.device) -> Alike:
    """The places of the tokens to ``keep`` in every row, of a scale of ``side``² tokens."""
    # Ordinary tensors, whatever the first who asks for them is about.
    with torch.inference_mode(False):
        mask = torch.tensor(keep, device=device)
        kept, rest = mask.nonzero().squeeze(1), (~mask).nonzero().squeeze(1)
        each = torch.eye(len(keep), device=device)
        near = mean_of_computed(each[None], mask[None], side)[0, rest][:, kept]
        return Alike(kept, rest, torch.cat((kept, rest)).argsort(), near)


class Uneven:
    """The places of the tokens to ``keep`` (R, l), of a scale of ``side``² tokens: of each row its own."""

    def __init__(self, keep: Tensor, side: int) -> None:
        self.keep, self.side = keep, side
        flat = keep.flatten()
        self.kept, self.rest = flat.nonzero().squeeze(1), (~flat).nonzero().squeeze(1)

    @cached_property
    def _around(self) -> Around:
        return Around(self.keep, self.rest, self.side)

    @cached_property
    def _place(self) -> Tensor:
        """Where each token is among those that are kept."""
        return self.keep.flatten().cumsum(0) - 1

    def of_kept(self, x: Tensor) -> Tensor:
        """See `Alike.of_kept`; (N, C)."""
        return x.flatten(0, 1).index_select(0, self.kept)

    def of_rest(self, x: Tensor) -> Tensor:
        """See `Alike.of_rest`; (N, C)."""
        return x.flatten(0, 1).index_select(0, self.rest)

    def mean(self, kept: Tensor) -> Tensor:
        """See `Alike.mean`; (N, C)."""
        return self._around.mean(kept, self._place)

    def beside(self, x: Tensor) -> Tensor:
        """See `Alike.beside`; (N, C)."""
        return self.of_rest(x) - self._around.mean(x.flatten(0, 1))

    def together(self, kept: Tensor, rest: Tensor) -> Tensor:
        """See `Alike.together`."""
        made = kept.new_empty(*self.keep.shape, kept.shape[1])
        made.flatten(0, 1).index_copy_(0, self.kept, kept).index_copy_(0, self.rest, rest.to(kept.dtype))
        return made


class InPlace:
    """Tokens to ``keep`` (R, l), of a scale of ``side``² tokens, and the rest, where all are computed: none moves.

    The kept are all tokens, of which the rest may be anything, and the rest are all tokens.
    """

    def __init__(self, keep: Tensor, side: int) -> None:
        self.keep, self.side = keep, side

    @cached_property
    def _weights(self) -> Tensor:
        return weights_of_computed(self.keep, self.side)

    def of_kept(self, x: Tensor) -> Tensor:
        """See `Alike.of_kept`."""
        return x

    of_rest = of_kept

    def mean(self, kept: Tensor) -> Tensor:
        """See `Alike.mean`."""
        return mean_of_computed(kept, self.keep, self.side, self._weights)

    def beside(self, x: Tensor) -> Tensor:
        """See `Alike.beside`."""
        return x - self.mean(x)

    def together(self, kept: Tensor, rest: Tensor) -> Tensor:
        """See `Alike.together`."""
        return torch.where(self.keep.unsqueeze(-1), kept, rest)


Places = Alike | Uneven | InPlace
"""Any kind."""
