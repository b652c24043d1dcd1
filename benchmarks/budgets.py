"""The same pictures at falling budgets: a sample of each class under one seed, a row for each budget.

    python benchmarks/budgets.py --model var-fashion-actvar --budgets 1 0.75 0.615 0.5 0.4 0.3

Writes docs/images/budgets.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

import actvar_cli

IMAGE = Path(__file__).parent.parent / "docs/images/budgets.png"


def main() -> None:
    """Sample, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="var-fashion-actvar")
    parser.add_argument("--budgets", type=float, nargs="+", default=[1, 0.75, 0.615, 0.5, 0.4, 0.3])
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    model = actvar_cli.load(args.model)
    labels = torch.arange(model.config.transformer.num_classes)
    figure = Figure(figsize=(len(labels) + 0.6, len(args.budgets)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    axes = figure.subplots(len(args.budgets), len(labels), squeeze=False)
    for budget, row in zip(args.budgets, axes, strict=True):
        model.set_budget(budget)
        for place, image in zip(row, model.sample(labels, seed=args.seed).images, strict=True):
            place.imshow(image[0].clamp(0, 1), cmap="gray", vmin=0, vmax=1)
            place.set_xticks([])
            place.set_yticks([])
        row[0].set_ylabel(f"{budget:g}", rotation=0, ha="right", va="center")
    figure.savefig(IMAGE, dpi=80)


if __name__ == "__main__":
    main()
