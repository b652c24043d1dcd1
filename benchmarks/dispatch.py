"""What each way of running the experts of one FFN takes, by width, rows and density: what `model/dispatch.py` goes by.

    OMP_NUM_THREADS=2 python benchmarks/dispatch.py
    OMP_NUM_THREADS=2 python benchmarks/dispatch.py --dtype bfloat16 --widths 1024 \
        --output benchmarks/results/dispatch_bfloat16.json

Weights and routes are random, the ways take turns, medians count. Writes benchmarks/results/dispatch.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tables import machine
from torch import Tensor

from actvar_cli.model import dispatch, products
from actvar_cli.model.config import TransformerConfig
from actvar_cli.model.device import keep_memory
from actvar_cli.model.experts import ExpertFFN
from actvar_cli.model.precision import DTYPES
from actvar_cli.profile.timing import in_turn
from actvar_cli.progress import Progress

RESULT = Path(__file__).parent / "results/dispatch.json"
EXPERTS = 8
WAYS = ("dense", "loop", "split")
DENSITIES = (0.35, 0.65, 0.9)
WIDTHS = {192: (128, 1024, 8192), 1024: (32, 128, 512, 2048)}
"""Rows at each width: those of early and late scales."""


def dense(ffn: ExpertFFN, x: Tensor, fused: bool) -> None:
    """All experts on, with the GELU in oneDNN's product or after it."""
    with patch.object(products, "GELU_ON_THE_WAY", fused):
        ffn(x)


@torch.inference_mode()
def measure(width: int, rows: int, density: float, repeats: int, dtype: torch.dtype) -> dict[str, Any]:
    """Milliseconds of every way for ``rows`` rows of a sequence."""
    torch.manual_seed(0)
    ffn = ExpertFFN(TransformerConfig(depth=1, embed_dim=width, num_heads=width // 64), EXPERTS).to(dtype)
    ffn.expert_mean.data = ffn.expert_mean.data.float()
    x = torch.randn(1, rows, width)
    on = torch.rand(1, rows, EXPERTS) < density
    ways: dict[str, Callable[[int], object]] = {
        "all": lambda _: dense(ffn, x, fused=False),
        "all, GELU in the product": lambda _: dense(ffn, x, fused=True),
        **{name: lambda _, way=dispatch.WAYS[name]: way(ffn, x, on) for name in WAYS},
    }
    measured = in_turn(ways, repeats=repeats, device=x.device, progress=Progress())
    return {
        "width": width,
        "rows": rows,
        "density": density,
        "ms": {name: 1e3 * statistics.median(of.seconds) for name, of in measured.items()},
    }


def main() -> None:
    """Measure everything and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--widths", type=int, nargs="+", choices=list(WIDTHS), default=list(WIDTHS))
    args = parser.parse_args()
    keep_memory(torch.device("cpu"))
    cells = []
    for width in args.widths:
        for rows in WIDTHS[width]:
            for density in DENSITIES:
                cells.append(measure(width, rows, density, args.repeats, DTYPES[args.dtype]))
                print(width, rows, density, {name: round(ms, 2) for name, ms in cells[-1]["ms"].items()}, flush=True)
    result = {
        **machine(),
        "dtype": args.dtype,
        "experts": EXPERTS,
        "repeats": args.repeats,
        "cells": cells,
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
