"""What the token gates of the shipped student are worth: its divergence with and without them, at equal cost.

    python benchmarks/gates.py

All gates' scores are shifted by the same amount, experts make up for the cost, and divergence is measured on samples of
the original. Nothing is trained anew. Writes benchmarks/results/gates.json.
"""

from __future__ import annotations

import argparse
import json
import math
from functools import partial
from pathlib import Path

import torch
from quality import divergence

import actvar_cli
from actvar_cli.convert.calibration import CostCurve, measured_cost
from actvar_cli.convert.recording import draw_samples
from actvar_cli.model.config import EVERYTHING
from actvar_cli.model.sampling import SamplingSettings, Setting
from actvar_cli.progress import Progress

RESULT = Path(__file__).parent / "results/gates.json"
SHIFTS = {"as they are": 0.0, "leaving out more": -0.5, "leaving out less": 0.5, "none": math.inf}
AROUND, TOLERANCE, TRIALS = 1.0, 0.001, 8
"""How far from the usual threshold another one is looked for, and how closely the cost is met, in how many trials."""


@torch.no_grad()
def main() -> None:
    """Measure every shift at every budget, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="var-fashion-actvar")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.45, 0.4, 0.3])
    parser.add_argument("--images", type=int, default=500, help="samples that the divergence is measured on")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    teacher, student = actvar_cli.load("var-fashion"), actvar_cli.load(options.model)
    tokens = draw_samples(
        teacher, options.images, seed=1, progress=Progress(), settings=SamplingSettings(cfg=1.5)
    ).tokens
    gates = [block.token_gate for block in student.transformer.stack if block.gated_scales]
    before = [gate.scores.detach().clone() for gate in gates]
    cells = []
    for budget in options.budgets:
        usual = student.setting_for(budget).threshold
        if usual is None or usual == EVERYTHING:
            parser.error(f"nothing is left out at a budget of {budget:g}")
        for name, shift in SHIFTS.items():
            for gate, scores in zip(gates, before, strict=True):
                gate.scores.copy_(scores + shift)
            measure = partial(measured_cost, student, images=50, seed=0)
            costs = CostCurve(measure, (usual - AROUND, usual + AROUND), None)
            threshold = costs.find(budget, TOLERANCE, TRIALS)
            with student.at(Setting(threshold)):
                kl = divergence(student, teacher, tokens)
            cells.append({"budget": budget, "gates": name, "cost": costs.cost(threshold), "kl": kl})
            print(cells[-1], flush=True)
    result = {"model": options.model, "images": options.images, "cells": cells, "torch": torch.__version__}
    options.result.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
