"""Matrix products by the fastest way there is; how many MACs they take is the same by each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

DTYPES = (
    (torch.float32, torch.bfloat16) if ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported() else (torch.float32,)
)
"""What oneDNN multiplies on this CPU; without bfloat16, as on x86 without AVX-512, torch's own product does that."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """``x`` (…, C) times ``weight`` (D, C) transposed, plus ``bias`` (D,), then GELU (tanh) with ``gelu``: (…, D).

    Without gradients on a CPU it is done by oneDNN, which does the GELU on the way; torch's own choice there, a BLAS,
    takes up to twice as long for the few rows of an early scale. For numbers of rows that come again: oneDNN prepares a
    way for each, and keeps it.
    """
    if _by_onednn(x, weight):
        after: tuple[str, list[float], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *after)  # type: ignore[no-any-return]
    y = F.linear(x, weight, bias)
    return F.gelu(y, approximate="tanh") if gelu else y


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        ONEDNN
        and x.device.type == "cpu"
        and x.dtype == weight.dtype in DTYPES
        # Of a slice of columns it is slower by orders of magnitude.
        and weight.is_contiguous()
        # It has no gradient, autocast does not know it, and what traces a model looks for torch's own operators.
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._is_tracing()
    )


class Linear(nn.Linear):
    """A layer that computes `linear`."""

    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """Map (…, C) to (…, D), followed by GELU with ``gelu``."""
        return linear(x, self.weight, self.bias, gelu=gelu)
