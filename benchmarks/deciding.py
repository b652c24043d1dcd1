"""What it takes to decide: the router's and the token gate's share of the blocks' work, and of their time.

    OMP_NUM_THREADS=2 python benchmarks/deciding.py

Models and routes are those of benchmarks/speed.py; the share of the time is the median of several samplings. Writes
benchmarks/results/deciding.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from routes import decide
from speed import KINDS, random_model
from tables import machine
from torch import nn

from actvar_cli.model.counters import WorkCounter
from actvar_cli.model.device import keep_memory
from actvar_cli.model.sampling import ActVAR, balanced_labels
from actvar_cli.profile.parts import Clock

RESULT = Path(__file__).parent / "results/deciding.json"
DECIDING = ("router", "token_gate")
BLOCK = (*DECIDING, "attention", "ffn", "reconstruction")
COSTS = {"experts": 0.6, "token gates": 0.6, "one row, experts": 0.4}
BATCHES = {"d16": 4, "var-fashion": 64}


@contextmanager
def timed(modules: Sequence[nn.Module]) -> Iterator[list[float]]:
    """Seconds of each call of ``modules``."""
    spent: list[float] = []
    handles = [
        handle
        for module in modules
        for handle in (
            module.register_forward_pre_hook(lambda *_: spent.append(-time.perf_counter())),
            module.register_forward_hook(lambda *_: spent.append(spent.pop() + time.perf_counter())),
        )
    ]
    yield spent
    for handle in handles:
        handle.remove()


def measure(dense: ActVAR, kind: str, batch: int, repeats: int) -> dict[str, Any]:
    """Both shares for one of `KINDS`, after one sampling to warm up."""
    sparse, drawn = KINDS[kind]
    model, labels = sparse(dense), balanced_labels(batch, dense.config.transformer.num_classes)
    scores = [drawn(dense.config, 2 * batch, seed, dense.device) for seed in range(repeats + 1)]
    decide(model, scores, batch, COSTS[kind])
    counter = WorkCounter(model.config)
    model.sample_tokens(labels, seed=0, counter=counter)
    shares = []
    for _ in range(repeats):
        clock = Clock(model)
        with timed(model.transformer.stack) as spent, clock.watching():
            model.sample_tokens(labels, seed=0)
        shares.append(sum(clock.parts[part] for part in DECIDING) / sum(spent))
    work = counter.by_part()
    return {
        "kind": kind,
        "cost": counter.cost,
        "work": sum(work[part] for part in DECIDING) / sum(work[part] for part in BLOCK),
        "time": statistics.median(shares),
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
