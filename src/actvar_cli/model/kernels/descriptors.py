"""How kernels read matrices: in tiles, by the copy engine where a GPU has one, some steps ahead."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

SPARE = 8192
"""Bytes of shared memory that a program needs beside what it loads ahead."""


def tiled(x: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """``x`` (N, C) in tiles of ``rows`` and ``columns``; what lies outside is read as zeros."""
    return TensorDescriptor.from_tensor(x, [rows, columns])


def precision(x: Tensor) -> str:
    """How products with ``x`` are to be done: with all bits of float32."""
    return "ieee" if x.dtype == torch.float32 else "tf32"


def steps_ahead(x: Tensor, rows: int, columns: int, step: int) -> int:
    """How many steps of a product have room where ``x`` is; each loads ``step`` numbers of all rows and columns."""
    return (shared_memory(x.device) - SPARE) // ((rows + columns) * step * x.element_size())


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may take."""
    if device.type != "cuda":
        return 2**18
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined,no-any-return]
