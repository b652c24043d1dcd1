"""Whether Triton's kernels can be used here."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from actvar_cli.model.config import TransformerConfig

INSTALLED = importlib.util.find_spec("triton") is not None

INTERPRETED = INSTALLED and os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton runs its kernels on the CPU."""

MOST_EXPERTS = 16
"""Experts that the kernels keep lists of, four bits each."""

UNIT = 16
"""Widths must be multiples of it: a tensor core multiplies so many numbers at a time."""


def usable(x: Tensor) -> bool:
    """Whether kernels may compute with ``x``: on a GPU that is new enough, or interpreted, without gradient."""
    if not INSTALLED or torch.is_grad_enabled() or torch._C._is_tracing():
        return False
    if not x.is_cuda:
        return INTERPRETED
    index = x.get_device()
    if index != torch.cuda.current_device() or torch.is_autocast_enabled("cuda"):
        return False
    return _new_enough(index) and can_build()


def preferred(x: Tensor) -> bool:
    """Whether they should: of float32 a GPU's kernels would make fewer bits, or take long."""
    return x.element_size() == 2 and usable(x)


@cache
def can_build() -> bool:
    """Whether Triton finds what it builds the starters of its kernels with: a C compiler, and Python's headers."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return bool(compiler) and Path(sysconfig.get_paths()["include"], "Python.h").exists()


@cache
def _new_enough(index: int) -> bool:
    # From Ampere on there is bfloat16.
    return torch.cuda.get_device_capability(index) >= (8, 0)


def fits(config: TransformerConfig, experts: int = 1) -> bool:
    """Whether a transformer's widths, and those of its ``experts``, are multiples of `UNIT`, and these few enough."""
    return experts <= MOST_EXPERTS and config.embed_dim % UNIT == 0 and config.hidden_dim % (UNIT * experts) == 0
