"""Whether fewer FLOPs become less time: compressed sampling against dense, the same weights, in turn, in one run.

    OMP_NUM_THREADS=2 python benchmarks/speed.py --shape d16 --batches 4 8 --repeats 3
    OMP_NUM_THREADS=2 python benchmarks/speed.py --shape var-fashion --batches 64 --repeats 9
    python benchmarks/speed.py --shape d16 --device cuda --dtypes bfloat16 --batches 8 64

Weights are random, in the shape asked for; experts and token gates decide as benchmarks/routes.py draws it. Timed are
the tokens of real sampling with guidance, without decoding them: of both rows, or of one row that has learned it, with
both at the first scales where that does not cost too much. Where one row leaves experts out, a model whose FFNs are
that much narrower for every token is timed in turn with it. Efficiency is the speed-up measured by the one that the
FLOPs promise. Adds what it measured to benchmarks/results/speed.json (speed_cuda.json on a GPU).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from dense_speed import PrintedProgress
from routes import decide, even_scores, experts_in, gates_in, narrower_in, one_row_in, random_of, student_scores
from torch import Tensor

import actvar_cli
from actvar_cli.model.config import EVERYTHING
from actvar_cli.model.counters import WorkCounter
from actvar_cli.model.device import device_name, keep_memory
from actvar_cli.model.precision import DTYPES, set_dtype
from actvar_cli.model.sampling import ActVAR, balanced_labels
from actvar_cli.profile.timing import in_turn
from actvar_cli.weights.zoo import published_config

RESULTS = Path(__file__).parent / "results"
COSTS = (0.79, 0.6)
KINDS = {
    "experts": (experts_in, student_scores),
    "token gates": (gates_in, even_scores),
    "one row, experts": (one_row_in, student_scores),
}


def random_model(shape: str, device: torch.device) -> ActVAR:
    """A dense model of ``shape``: ``var-fashion`` or ``d16`` and so on."""
    config = actvar_cli.load(shape).config if shape == "var-fashion" else published_config(int(shape[1:]))
    return random_of(config, device)


def draw(model: ActVAR, labels: Tensor, seed: int) -> None:
    """Draw tokens."""
    model.sample_tokens(labels, seed=seed)


def measure(
    dense: ActVAR, batch: int, repeats: int, kinds: Sequence[str], costs: Sequence[float]
) -> Iterator[dict[str, Any]]:
    """Each of ``kinds`` alone at each cost, in turn with dense sampling."""
    device = dense.device
    labels = balanced_labels(batch, dense.config.transformer.num_classes).to(device)
    for kind in kinds:
        sparse, drawn = KINDS[kind]
        # Routes of its own for each sampling, as real ones have; but a GPU records the first.
        seeds = range(1 if device.type == "cuda" else repeats + 2)
        scores = [drawn(dense.config, 2 * batch, seed, device) for seed in seeds]
        for asked in costs:
            # A model for each: what a GPU records of one would not do for another.
            model = sparse(dense)
            decide(model, scores, batch, asked)
            counter = WorkCounter(model.config)
            model.sample_tokens(labels, seed=0, counter=counter)
            ways = {"dense": partial(draw, dense, labels), "sparse": partial(draw, model, labels)}
            if model.config.guidance and model.threshold != EVERYTHING:
                # What static pruning leaves takes as many FLOPs, and decides nothing.
                ways["narrower"] = partial(draw, narrower_in(dense, asked), labels)
            label = f"{kind} at {asked:g}, batch {batch}"
            measured = in_turn(ways, repeats=repeats, device=device, progress=PrintedProgress(), label=label)
            seconds = {name: of.seconds for name, of in measured.items()}
            ratios = [a / b for a, b in zip(seconds["dense"], seconds["sparse"], strict=True)]
            yield {
                "kind": kind,
                "asked": asked,
                "cost": counter.cost,
                "batch": batch,
                "dense_seconds": seconds["dense"],
                "seconds": seconds["sparse"],
                "narrower_seconds": seconds.get("narrower"),
                "speedup": statistics.median(ratios),
                "slowest": min(ratios),
                "fastest": max(ratios),
                "efficiency": statistics.median(ratios) * counter.cost,
                "peak_bytes": {name: of.peak_bytes for name, of in measured.items()},
            }


def main() -> None:
    """Measure every batch and type, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="d16", help="d16, d20, d24, d30, d36 or var-fashion")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["float32"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="what is left out")
    parser.add_argument("--costs", type=float, nargs="+", default=COSTS, help="shares of the dense model's FLOPs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    keep_memory(device)
    output = args.output or RESULTS / f"speed{'' if device.type == 'cpu' else '_' + device.type}.json"
    runs = json.loads(output.read_text()) if output.exists() else {}
    for dtype in args.dtypes:
        dense = set_dtype(random_model(args.shape, device), dtype)
        for batch in args.batches:
            name = f"{args.shape}, {dtype}, {batch}"
            where = {
                "device": device_name(device),
                "cpu_capability": torch.backends.cpu.get_cpu_capability(),
                "torch": torch.__version__,
                "dispatch": os.environ.get("ACTVAR_DISPATCH", ""),
            }
            # What is not measured now stays, if it was measured in the same place.
            before = runs.get(name, {})
            cells = before["cells"] if before and where.items() <= before.items() else []
            stay = [c for c in cells if c["kind"] not in args.kinds or c["asked"] not in args.costs]
            run = runs[name] = {**where, "cells": stay}
            for cell in measure(dense, batch, args.repeats, args.kinds, args.costs):
                print(f"{args.shape}, {dtype}, batch {batch}, {cell['kind']}: efficiency {cell['efficiency']:.2f}")
                run["cells"].append(cell)
                run["cells"].sort(key=lambda c: (list(KINDS).index(c["kind"]), -c["asked"]))
                output.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
