"""GELU inside a kernel."""

from __future__ import annotations

import triton
import triton.language as tl

from actvar_cli.model.kernels.usable import INTERPRETED

_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def _tanh(x):
    if _INTERPRETED:
        return 2 * tl.sigmoid(2 * x) - 1
    # One instruction, right to 11 bits: more than what is made of it keeps.
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def gelu(x):
    """GELU by its tanh approximation."""
    half = 0.5 * x
    return half + half * _tanh(x * (0.7978845608028654 + 0.035677408136300125 * x * x))
