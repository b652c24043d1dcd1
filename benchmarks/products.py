"""How long products take on a CPU: an expert's first by its number of rows, and small ones by oneDNN and by a BLAS.

    OMP_NUM_THREADS=2 python benchmarks/products.py

What `lacking` and `BY_BLAS` in model/products.py and the pieces in model/dispatch.py go by. Medians; writes
benchmarks/results/products.json and products_small.json.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

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
FEW, TIMES = (2, 8, 32, 128, 512), 60


def seconds(x: Tensor, weight: Tensor, bias: Tensor) -> float:
    """Of one product with GELU; ``x`` (1, n, C), which is not filled up."""
    began = time.perf_counter()
    linear(x, weight, bias, gelu=True)
    return time.perf_counter() - began


def by_both(width: int, outputs: int, rows: int) -> list[float]:
    """Microseconds of one product in float32, by oneDNN and by a BLAS: medians, both in turn."""
    x, weight, bias = torch.randn(rows, width), torch.randn(outputs, width), torch.randn(outputs)
    ways: dict[str, Callable[[int], object]] = {
        # As `linear` asks for it.
        "oneDNN": lambda _: torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""),
        "BLAS": lambda _: F.linear(x, weight, bias),
    }
    measured = in_turn(ways, repeats=TIMES, device=x.device, progress=Progress())
    return [1e6 * statistics.median(of.seconds) for of in measured.values()]


@torch.inference_mode()
def main() -> None:
    """Measure all of it and write the result."""
    keep_memory(torch.device("cpu"))
    torch.manual_seed(0)
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
        print(name, found[name])
    small = {f"{width} to {outputs}": {rows: by_both(width, outputs, rows) for rows in FEW} for width, outputs in SMALL}
    print(small)
    for file, result in {
        "products.json": {"width": WIDTH, "neurons": NEURONS, **machine(), "dtypes": found},
        "products_small.json": {**machine(), "microseconds_onednn_and_blas": small},
    }.items():
        (RESULTS / file).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
