"""What it takes to decide: the router's and the token gate's share of the blocks' work, and of their time.

    OMP_NUM_THREADS=2 python benchmarks/deciding.py

Models and routes are those of benchmarks/speed.py. Time is that of the parts with matrix products, medians of several
samplings; norms and sums between them are left out, so the share of a block's whole time is smaller. Writes
benchmarks/results/deciding.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from routes import decide, setting_for
from speed import KINDS, random_model
from tables import machine

from actvar_cli.model.counters import WorkCounter
from actvar_cli.model.device import keep_memory
from actvar_cli.model.sampling import ActVAR, balanced_labels
from actvar_cli.profile.parts import Clock, times

RESULT = Path(__file__).parent / "results/deciding.json"
DECIDING = ("router", "token_gate")
BLOCK = (*DECIDING, "attention", "ffn", "reconstruction")
COSTS = {"experts": 0.6, "token gates": 0.6, "one row, experts": 0.4}
BATCHES = {"d16": 4, "var-fashion": 64}


def share(parts: Mapping[str, float]) -> float:
    """The part of a block's sum that `DECIDING` takes."""
    return sum(parts.get(part, 0) for part in DECIDING) / sum(parts.get(part, 0) for part in BLOCK)


def measure(dense: ActVAR, kind: str, batch: int, repeats: int) -> dict[str, Any]:
    """Both shares for one of `KINDS`, after one sampling to warm up."""
    sparse, drawn = KINDS[kind]
    model, labels = sparse(dense), balanced_labels(batch, dense.config.transformer.num_classes)
    scores = [drawn(dense.config, 2 * batch, seed, dense.device) for seed in range(repeats + 1)]
    decide(model, scores, setting_for(model.config, scores[0], batch, COSTS[kind]))
    counter = WorkCounter(model.config)
    model.sample_tokens(labels, seed=0, counter=counter)
    clocks = [Clock(model) for _ in range(repeats)]
    for clock in clocks:
        with clock.watching():
            model.sample_tokens(labels, seed=0)
    return {
        "kind": kind,
        "cost": counter.cost,
        "work": share(counter.by_part()),
        "time": share(times(clocks, batch).parts),
    }


@torch.inference_mode()
def main() -> None:
    """Measure all and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    device = torch.device("cpu")
    keep_memory(device)
    cells = []
    for shape, batch in BATCHES.items():
        dense = random_model(shape, device)
        for kind in COSTS:
            cells.append({"shape": shape, "batch": batch, **measure(dense, kind, batch, repeats)})
            print(cells[-1], flush=True)
    RESULT.write_text(json.dumps({**machine(), "repeats": repeats, "cells": cells}, indent=1) + "\n")


if __name__ == "__main__":
    main()
