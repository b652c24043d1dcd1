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
    name, wanted = _switch()
    before = getattr(torch.backends.cuda.matmul, name)
    setattr(torch.backends.cuda.matmul, name, wanted)
    try:
        yield
    finally:
        setattr(torch.backends.cuda.matmul, name, before)


def _switch() -> tuple[str, object]:
    """The setting for that, and its value: the older one, but where the program has used the newer one.

    Whoever has set the one cannot read the other.
    """
    try:
        torch.backends.cuda.matmul.allow_tf32  # noqa: B018
    except RuntimeError:
        return "fp32_precision", "tf32"
    return "allow_tf32", True


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
