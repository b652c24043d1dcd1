"""How time and memory of sampling grow with batch and depth, dense and compressed.

    OMP_NUM_THREADS=2 python benchmarks/growth.py
    python benchmarks/growth.py --device cuda --dtype bfloat16 --batches 1 2 4 8 16 32 64 --depth-batch 8

Experts at a cost of 0.6 beside dense sampling, as benchmarks/speed.py measures it, each shape in a process of its own.
Writes benchmarks/results/growth.json (growth_cuda.json on a GPU) and the picture of the same name in docs/images/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COST = 0.6
SMALL_BATCHES = (1, 2, 4, 8, 16, 32, 64)


def measure(shape: str, batches: Sequence[int], args: argparse.Namespace, output: Path) -> None:
    """Add ``shape`` at ``batches`` to ``output``."""
    options = {
        "--shape": [shape],
        "--batches": batches,
        "--kinds": ["experts"],
        "--costs": [COST],
        "--repeats": [args.repeats],
        "--device": [args.device],
        "--dtypes": [args.dtype],
        "--output": [output],
    }
    given = [str(word) for name, values in options.items() for word in (name, *values)]
    subprocess.run([sys.executable, str(ROOT / "benchmarks/speed.py"), *given], check=True)


def lines(runs: dict[str, Any], keys: Sequence[str]) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds per image and gigabytes at most in each of ``keys``, dense and compressed."""
    cells = [runs[key]["cells"][0] for key in keys]
    return {
        name: (
            [statistics.median(cell[seconds]) / cell["batch"] for cell in cells],
            [(cell["peak_bytes"][peak] or 0) / 1e9 for cell in cells],
        )
        for name, seconds, peak in (("dense", "dense_seconds", "dense"), (f"cost {COST:g}", "seconds", "sparse"))
    }


def draw(runs: dict[str, Any], picture: Path, depth_batch: int) -> None:
    """Time above, memory below; over the batch to the left, over depth to the right."""
    from matplotlib.figure import Figure

    named = {key: key.split(", ") for key in runs}
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    by_batch = {shape: [key for key, (at, _, _) in named.items() if at == shape] for shape in ("var-fashion", "d16")}
    depths = [key for key, (shape, _, batch) in named.items() if shape != "var-fashion" and int(batch) == depth_batch]
    depths.sort(key=lambda key: int(named[key][0][1:]))
    for number, (shape, keys) in enumerate(by_batch.items()):
        keys.sort(key=lambda key: int(named[key][2]))
        plot(axes[:, 0], [int(named[key][2]) for key in keys], lines(runs, keys), f"C{number}", f"{shape}, ")
    plot(axes[:, 1], [int(named[key][0][1:]) for key in depths], lines(runs, depths), "C1", f"batch {depth_batch}, ")
    axes[0, 0].set(ylabel="seconds per image, transformer", yscale="log", xscale="log")
    axes[1, 0].set(ylabel="memory at most, GB", xlabel="images sampled together", yscale="log")
    axes[1, 1].set(xlabel="depth", xticks=[int(named[key][0][1:]) for key in depths])
    axes[1, 0].set_xticks(SMALL_BATCHES, [str(batch) for batch in SMALL_BATCHES])
    for at in axes.flat:
        at.grid(alpha=0.3, which="both")
    for at in axes[0]:
        at.legend(fontsize=8)
    figure.savefig(picture, dpi=110)


def plot(axes: Any, x: list[int], found: dict[str, tuple[list[float], list[float]]], color: str, label: str) -> None:
    """A line for dense and one for compressed sampling in each of two ``axes``."""
    for style, (name, both) in zip(("--", "-"), found.items(), strict=True):
        for at, values in zip(axes, both, strict=True):
            at.plot(x, values, style, marker="o", markersize=4, color=color, label=label + name)


def main() -> None:
    """Measure what is asked for, keep what was measured before, and draw all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4, 8, 16], help="of a d16")
    parser.add_argument("--depths", type=int, nargs="*", default=[20, 24, 30])
    parser.add_argument("--depth-batch", type=int, default=1, help="images sampled together at every depth")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    name = f"growth{'' if args.device == 'cpu' else '_' + args.device}"
    output = ROOT / f"benchmarks/results/{name}.json"
    measure("var-fashion", SMALL_BATCHES, args, output)
    if args.batches:
        measure("d16", args.batches, args, output)
    for depth in args.depths:
        measure(f"d{depth}", [args.depth_batch], args, output)
    draw(json.loads(output.read_text()), ROOT / f"docs/images/{name}.png", args.depth_batch)


if __name__ == "__main__":
    main()
