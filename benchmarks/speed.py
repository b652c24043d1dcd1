"""Whether fewer FLOPs become less time: compressed sampling against dense, the same weights, in turn, in one run.

    OMP_NUM_THREADS=2 python benchmarks/speed.py --shape d16 --batches 4 8 --repeats 3
    OMP_NUM_THREADS=2 python benchmarks/speed.py --shape var-fashion --batches 64 --repeats 9
    python benchmarks/speed.py --shape d16 --device cuda --dtypes bfloat16 --batches 8 64

Weights are random, in the shape asked for; experts and token gates decide as benchmarks/routes.py draws it. Timed are
the tokens of real sampling with guidance (both rows), without decoding them. Efficiency is the speed-up measured by the
one that the FLOPs promise. Adds what it measured to benchmarks/results/speed.json (speed_cuda.json on a GPU).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# As the command line does, before torch first needs memory.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch
from dense_speed import PrintedProgress, randomise
from random_checkpoint import published_config
from routes import Scores, decide, even_scores, experts_in, gates_in, student_scores, threshold_for
from torch import Tensor

import actvar_cli
from actvar_cli.model.counters import WorkCounter
from actvar_cli.model.device import device_name
from actvar_cli.model.precision import DTYPES, set_dtype
from actvar_cli.model.sampling import ActVAR, balanced_labels
from actvar_cli.model.tokenizer import Tokenizer
from actvar_cli.model.var import VAR
from actvar_cli.profile.timing import in_turn

RESULTS = Path(__file__).parent / "results"
COSTS = (0.79, 0.6)


def random_model(shape: str) -> ActVAR:
    """A dense model of ``shape``: ``var-fashion`` or ``d16`` and so on."""
    config = actvar_cli.load(shape).config if shape == "var-fashion" else published_config(int(shape[1:]))
    model = ActVAR(config, VAR(config), Tokenizer(config.tokenizer)).eval()
    randomise(model.transformer, torch.Generator().manual_seed(0))
    return model


def sample_dense(model: ActVAR, labels: Tensor, seed: int) -> None:
    """Draw tokens, everything computed."""
    model.threshold = None
    model.sample_tokens(labels, seed=seed)


def sample_routed(model: ActVAR, labels: Tensor, scores: Scores, seed: int, counter: WorkCounter | None = None) -> None:
    """Draw tokens by the routes of ``scores``."""
    decide(model, scores)
    model.sample_tokens(labels, seed=seed, counter=counter)


def measure(dense: ActVAR, batch: int, repeats: int) -> list[dict[str, Any]]:
    """Dense, experts alone and token gates alone at each cost."""
    rows, device = 2 * batch, dense.device
    labels = balanced_labels(batch, dense.config.transformer.num_classes).to(device)
    ways: dict[str, Callable[[int], Any]] = {"dense": partial(sample_dense, dense, labels)}
    asked: dict[str, tuple[str, float]] = {}
    costs: dict[str, float] = {}
    for kind, model, scores in (
        ("experts", experts_in(dense), student_scores(dense.config, rows, 0)),
        ("token gates", gates_in(dense), even_scores(dense.config, rows, 0)),
    ):
        for cost in COSTS:
            name = f"{kind} at {cost:g}"
            threshold = threshold_for(model.config, scores, batch, cost)
            way = partial(sample_routed, model, labels, {k: (v - threshold).to(device) for k, v in scores.items()})
            counter = WorkCounter(model.config)
            way(0, counter)
            ways[name], asked[name], costs[name] = way, (kind, cost), counter.cost
    measured = in_turn(ways, repeats=repeats, device=device, progress=PrintedProgress(), label=f"batch {batch}")
    reference = measured["dense"].seconds
    found = []
    for name, (kind, cost) in asked.items():
        ratios = [a / b for a, b in zip(reference, measured[name].seconds, strict=True)]
        found.append(
            {
                "kind": kind,
                "asked": cost,
                "cost": costs[name],
                "batch": batch,
                "dense_seconds": reference,
                "seconds": measured[name].seconds,
                "speedup": statistics.median(ratios),
                "slowest": min(ratios),
                "fastest": max(ratios),
                "efficiency": statistics.median(ratios) * costs[name],
                "peak_bytes": {"dense": measured["dense"].peak_bytes, "sparse": measured[name].peak_bytes},
            }
        )
    return found


def main() -> None:
    """Measure every batch and type, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="d16", help="d16, d20, d24, d30, d36 or var-fashion")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["float32"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    output = args.output or RESULTS / f"speed{'' if device.type == 'cpu' else '_' + device.type}.json"
    runs = json.loads(output.read_text()) if output.exists() else {}
    for dtype in args.dtypes:
        dense = set_dtype(random_model(args.shape), dtype).to(device)
        for batch in args.batches:
            found = measure(dense, batch, args.repeats)
            for cell in found:
                print(f"{args.shape}, {dtype}, batch {batch}, {cell['kind']}: efficiency {cell['efficiency']:.2f}")
            runs[f"{args.shape}, {dtype}, {batch}"] = {
                "device": device_name(device),
                "cpu_capability": torch.backends.cpu.get_cpu_capability(),
                "torch": torch.__version__,
                "dispatch": os.environ.get("ACTVAR_DISPATCH", ""),
                "cells": found,
            }
            output.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
