"""How long products take on a CPU: an expert's first by its number of rows, small ones, and those of few bits.

    OMP_NUM_THREADS=2 python benchmarks/products.py

What `lacking`, `BY_BLAS`, `GELUS_APART` and `FAST` in model/products.py and the pieces in model/dispatch.py go by.
Medians; writes benchmarks/results/products.json, products_small.json and products_few_bits.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from tables import RESULTS, machine
from torch import Tensor

from actvar_cli.model.device import keep_memory
from actvar_cli.model.precision import DTYPES
from actvar_cli.model.products import linear
from actvar_cli.profile.timing import in_turn
from actvar_cli.progress import Progress

WIDTH, NEURONS = 1024, 512
"""Those of a d16, with eight experts."""
ROWS = (64, 128, 256, 448, 512, 768, 1008, 1088, 2048, 4096)
WEIGHTS, REPEATS, UNSEEN = 4, 7, 31

SMALL = ((192, 24), (192, 192), (192, 576), (768, 192), (384, 384), (512, 512), (1024, 1024))
"""What is read and written by small products, of which the first five have no more than `BY_BLAS` weights."""
WITH_GELU = ((192, 24), (192, 768), (1024, 64))
"""The same of products that a GELU follows, as in routers, and the first one of a small model's FFN."""
FEW, TIMES = (2, 8, 32, 128, 512), 60

OUTPUTS = 4096
"""Of the first product of an FFN of d16."""


def seconds(x: Tensor, weight: Tensor, bias: Tensor) -> float:
    """Of one product with GELU; ``x`` (1, n, C), which is not filled up."""
    began = time.perf_counter()
    linear(x, weight, bias, gelu=True)
    return time.perf_counter() - began


def by_both(width: int, outputs: int, rows: int, gelu: bool) -> list[float]:
    """Microseconds of one product in float32, by oneDNN and by a BLAS: medians, both in turn."""
    x, weight, bias = torch.randn(rows, width), torch.randn(outputs, width) / width**0.5, torch.randn(outputs)
    after = ("gelu", [], "tanh") if gelu else ("none", [], "")

    def by_blas(_: int) -> None:
        made = F.linear(x, weight, bias)
        if gelu:
            F.gelu(made, approximate="tanh")

    ways: dict[str, Callable[[int], object]] = {
        # As `linear` asks for it.
        "oneDNN": lambda _: torch.ops.mkldnn._linear_pointwise(x, weight, bias, *after),
        "BLAS": by_blas,
    }
    measured = in_turn(ways, repeats=TIMES, device=x.device, progress=Progress())
    return [1e6 * statistics.median(of.seconds) for of in measured.values()]


def of_an_expert() -> dict[str, Any]:
    """By type: microseconds for a row by the number of rows, and what a number takes longer for the first time."""
    found = {}
    for name in ("float32", "bfloat16"):
        dtype = DTYPES[name]
        weights = [torch.randn(NEURONS, WIDTH).to(dtype) for _ in range(WEIGHTS)]
        bias = torch.zeros(NEURONS, dtype=dtype)
        times: dict[int, list[float]] = {rows: [] for rows in ROWS}
        # All numbers of rows in turn, so that what else the machine does is spread over them.
        for repeat in range(REPEATS + 1):
            for rows in ROWS:
                x = torch.randn(1, rows, WIDTH).to(dtype)
                taken = [seconds(x, weight, bias) for weight in weights]
                times[rows] += taken if repeat else []
        first = []
        for rows in range(451, 451 + UNSEEN):
            x = torch.randn(1, rows, WIDTH).to(dtype)
            first.append(seconds(x, weights[0], bias) - seconds(x, weights[0], bias))
        found[name] = {
            "microseconds_per_row": {rows: 1e6 * statistics.median(taken) / rows for rows, taken in times.items()},
            "unseen_ms": 1e3 * statistics.median(first),
        }
    return found


def of_few_bits(rows: int) -> dict[str, float]:
    """Milliseconds of one product: in float32, in bfloat16, and in float32 with weights that are kept in bfloat16."""
    x, weight = torch.randn(1, rows, WIDTH), torch.randn(OUTPUTS, WIDTH) / WIDTH**0.5
    few = weight.bfloat16()
    ways: dict[str, Callable[[int], object]] = {
        "float32": lambda _: linear(x, weight),
        "bfloat16": lambda _: linear(x.bfloat16(), few),
        "weights in bfloat16": lambda _: linear(x, few),
    }
    measured = in_turn(ways, repeats=UNSEEN, device=x.device, progress=Progress())
    return {name: 1e3 * statistics.median(of.seconds) for name, of in measured.items()}


def write(file: str, result: dict[str, Any]) -> None:
    """Write ``result``, with what it was measured on."""
    print(result)
    (RESULTS / file).write_text(json.dumps({**machine(), **result}, indent=1) + "\n")


@torch.inference_mode()
def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["expert", "small", "few bits"], help="only these")
    keep_memory(torch.device("cpu"))
    torch.manual_seed(0)
    only = parser.parse_args().only
    if only in (None, "expert"):
        write("products.json", {"width": WIDTH, "neurons": NEURONS, "dtypes": of_an_expert()})
    if only in (None, "small"):
        small = {
            f"{width} to {outputs}{', GELU' if gelu else ''}": {n: by_both(width, outputs, n, gelu) for n in FEW}
            for gelu, sizes in ((False, SMALL), (True, WITH_GELU))
            for width, outputs in sizes
        }
        write("products_small.json", {"microseconds_onednn_and_blas": small})
    if only in (None, "few bits"):
        by_rows = {n: of_few_bits(n) for n in (*FEW, *ROWS[-1:])}
        write("products_few_bits.json", {"width": WIDTH, "outputs": OUTPUTS, "milliseconds": by_rows})


if __name__ == "__main__":
    main()
