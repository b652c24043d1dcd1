"""Matrix products by the fastest way there is; how many MACs they take is the same by each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actvar_cli.model.counters import is_exact
from actvar_cli.model.device import fast_bf16
from actvar_cli.model.kernels.usable import preferred

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

GELU_ON_THE_WAY = torch.backends.cpu.get_cpu_capability() != "AVX2"
"""Whether oneDNN should do the GELU too; with AVX2 an FFN then takes up to a fifth longer (docs/experts.md)."""

DTYPES = (
    (torch.float32, torch.bfloat16) if ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported() else (torch.float32,)
)
"""What oneDNN multiplies on this CPU."""

FAST = (torch.float32, torch.float64, *([torch.bfloat16] if fast_bf16(torch.device("cpu")) else []))
"""Types in which this CPU multiplies weights that are of them. Those of others, which take longer than float32, are
brought to that for each product: that takes half a millisecond for four million weights, and no memory for long."""

BY_BLAS = 200_000
"""Up to how many float32 weights a BLAS takes less: oneDNN, once it is called, takes as long as hundreds of thousands
of multiplications, and orders the weights anew."""

GELUS_APART = 8_192
"""And up to how many GELUs after it: oneDNN does them on the way, in a fraction of the time."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """``x`` (…, C) times ``weight`` (D, C) transposed, plus ``bias`` (D,), then GELU (tanh) with ``gelu``: (…, D).

    Without gradients on a CPU large weights are multiplied by oneDNN; torch's own choice there, a BLAS, takes up to
    twice as long for the few rows of an early scale. A matrix (N, C) is of tokens that were picked, and is filled up,
    see `lacking`. ``weight`` and ``bias`` may have fewer bits than ``x``, see `product_dtype`.
    """
    weight, bias = widened(weight, x), None if bias is None else widened(bias, x)
    if gelu and bias is not None and x.is_cuda and preferred(x):
        # Both in one by cuBLASLt.
        rows = torch._addmm_activation(bias, x.flatten(0, -2), weight.T, use_gelu=True)
        return rows.unflatten(0, x.shape[:-1])  # type: ignore[no-any-return]
    if not _by_onednn(x, weight, gelu):
        y = F.linear(x, weight, bias)
        return F.gelu(y, approximate="tanh") if gelu else y
    if x.dim() == 2 and (more := lacking(len(x), weight)):
        return linear(F.pad(x, (0, 0, 0, more)), weight, bias, gelu=gelu)[: len(x)]
    if gelu and GELU_ON_THE_WAY:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "tanh")  # type: ignore[no-any-return]
    y = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.ops.aten.gelu_(y, approximate="tanh") if gelu else y  # type: ignore[no-any-return]


def product_dtype(weight: Tensor) -> torch.dtype:
    """In which type products with ``weight`` are computed: see `FAST`."""
    slow = weight.device.type == "cpu" and weight.dtype not in FAST
    # Kernels that are interpreted take weights as they are.
    return torch.float32 if slow and not preferred(weight) else weight.dtype


def fitted(x: Tensor, weight: Tensor) -> Tensor:
    """``x`` in the type in which it is multiplied by ``weight``, see `product_dtype`."""
    return x.to(product_dtype(weight))


def widened(weight: Tensor, x: Tensor) -> Tensor:
    """``weight`` in the type of ``x``, if it is a CPU's that has fewer bits."""
    return weight.to(x.dtype) if weight.device.type == "cpu" and weight.itemsize == 2 < x.itemsize else weight


def _by_onednn(x: Tensor, weight: Tensor, gelu: bool) -> bool:
    return (
        ONEDNN
        and is_replaceable(x)
        and (x.dim() > 2 or _filled_up(weight))
        and x.dtype == weight.dtype in DTYPES
        and not _by_blas(x, weight, gelu)
        # Of a slice of columns it is slower by orders of magnitude.
        and weight.is_contiguous()
    )


def _by_blas(x: Tensor, weight: Tensor, gelu: bool) -> bool:
    gelus = x.shape[:-1].numel() * len(weight) if gelu else 0
    return weight.dtype == torch.float32 and weight.numel() <= BY_BLAS and gelus <= GELUS_APART


def is_replaceable(x: Tensor) -> bool:
    """Whether what torch's own operators make of ``x`` may be made by others here: on a CPU, where nobody minds.

    They have no gradient, autocast does not know them, and what traces a model looks for torch's own.
    """
    return (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._is_tracing()
    )


def _filled_up(weight: Tensor) -> bool:
    """Whether rows that were picked are filled up, and multiplied by oneDNN: not in float32, see `lacking`."""
    return weight.device.type == "cpu" and product_dtype(weight) == torch.bfloat16 in DTYPES and not is_exact()


def lacking(rows: int, weight: Tensor) -> int:
    """How many rows (n, C) that were picked should be filled up with before they are multiplied by ``weight``.

    For a number of rows that it has not had yet oneDNN prepares for milliseconds, longer than many a product takes; and
    picked tokens are ever another number. So it is given one of a few: a multiple of 16, from 512 on of at most a
    sixteenth of them. 0 where nothing is gained by more rows: in float32 a BLAS is as fast, and does not prepare.
    """
    if torch.is_grad_enabled() or not _filled_up(weight):
        return 0
    step = max(16, 1 << max(rows.bit_length() - 5, 0))
    return -rows % step


class Linear(nn.Linear):
    """A layer that computes `linear`."""

    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """Map (…, C) to (…, D), followed by GELU with ``gelu``."""
        return linear(x, self.weight, self.bias, gelu=gelu)
