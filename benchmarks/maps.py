"""Where a student works: densities by block and scale, and pictures with what each of their tokens was given.

    python benchmarks/maps.py --model var-fashion-actvar --budgets 0.5 0.3

Writes docs/images/density.svg, at the lowest budget, and docs/images/work.png: for each class a sample, and by budget
the share of the last scale's block work that each of its tokens was given.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import actvar_cli
from actvar_cli.convert.recording import TeacherSamples, decisions_at
from actvar_cli.model.counters import WorkCounter, attention_macs, ffn_macs
from actvar_cli.model.sampling import ActVAR, balanced_labels
from actvar_cli.profile.plots import densities

IMAGES = Path(__file__).parent.parent / "docs/images"


@torch.no_grad()
def work_by_token(model: ActVAR, samples: TeacherSamples) -> Tensor:
    """The share of all blocks' work that each token of the last scale was given, (B, l).

    What was decided in sampling is decided again on the finished sequences.
    """
    config, length, last = model.config, model.config.tokenizer.num_tokens, model.config.tokenizer.patch_nums[-1] ** 2
    assert model.threshold is not None
    computed, skipped = attention_macs(config, 1, 0, length), attention_macs(config, 0, 1, length)
    spent = torch.zeros(len(samples), last)
    for block, made in enumerate(decisions_at(model, samples, model.threshold, len(samples))):
        assert made.on is not None
        experts = config.experts_in(block)
        ffn = made.on[:, -last:].sum(-1) * ffn_macs(config, 1, experts)
        keep = torch.ones_like(ffn) if made.keep is None else made.keep[:, -last:]
        if config.token_gate and config.token_gate.skips == "block":
            ffn = keep * ffn
        # Of one row of each image, or the mean of its two.
        spent += (ffn + keep * computed + (1 - keep) * skipped).unflatten(0, (-1, len(samples))).mean(0)
    return spent / (config.transformer.depth * (computed + ffn_macs(config, 1, 1)))


def main() -> None:
    """Sample, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="var-fashion-actvar")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.4, 0.3])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = actvar_cli.load(args.model)
    classes, side = model.config.transformer.num_classes, model.config.tokenizer.patch_nums[-1]
    figure = Figure(figsize=(classes * 1.1, 2.4 * len(args.budgets)), layout="constrained")
    axes = figure.subplots(2 * len(args.budgets), classes)
    for number, budget in enumerate(args.budgets):
        model.set_budget(budget)
        labels = torch.arange(classes)
        samples = model.sample(labels, seed=args.seed)
        work = work_by_token(model, TeacherSamples(labels, samples.tokens))
        for label in range(classes):
            above, below = axes[2 * number, label], axes[2 * number + 1, label]
            above.imshow(samples.images[label, 0].clamp(0, 1), cmap="gray", vmin=0, vmax=1)
            shown = below.imshow(work[label].view(side, side), cmap="viridis", vmin=0, vmax=1)
            for place in (above, below):
                place.set_axis_off()
        axes[2 * number, 0].set_title(f"budget {budget:g}", loc="left", fontsize=9)
    model.set_budget(min(args.budgets))
    counter = WorkCounter(model.config)
    model.sample_tokens(balanced_labels(20 * classes, classes), seed=args.seed, counter=counter)
    shares = (counter.density(kind) for kind in ("experts", "tokens"))
    (IMAGES / "density.svg").write_text(densities(model.config.tokenizer.patch_nums, *shares))
    figure.colorbar(shown, ax=axes, fraction=0.015, label="block work of a token of the last scale")
    figure.savefig(IMAGES / "work.png", dpi=110)


if __name__ == "__main__":
    main()
