"""The head after sampling's last block on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from actvar_cli.model.kernels.norms import Update, sum_adaln

if TYPE_CHECKING:
    from actvar_cli.model.var import VAR


@contextmanager
def tf32() -> Iterator[None]:
    """Inside, a GPU multiplies float32 in TF32: ten bits of each number, at a multiple of the speed."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def logits(
    var: VAR, x: Tensor, update: Update | None, cond: Tensor, strength: float | None, out: Tensor | None
) -> Tensor:
    """Logits (R, l, vocab), float32, of ``x`` (R, l, C) with its ``update``, in ``out`` if that is given.

    The rest as in `VAR.logits`. The product is done in TF32.
    """
    scale, shift = torch.stack(var.head_nm.condition(cond, strength)).unbind()
    h = sum_adaln(x, update, scale + 1, shift, var.head_nm.eps, torch.float32)[1]
    with tf32():
        if out is None:
            return var.head(h)  # type: ignore[no-any-return]
        torch.addmm(var.head.bias, h.flatten(0, 1), var.head.weight.T, out=out.flatten(0, 1))
    return out
