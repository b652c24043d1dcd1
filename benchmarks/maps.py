"""Where a student works: densities by block and scale, and pictures with what each of their tokens was given.

    python benchmarks/maps.py --model var-fashion-actvar --budgets 0.5 0.3

Writes docs/images/density.svg, at the lowest budget, and docs/images/work.png: for each class a sample, and by budget
the share of the last scale's block work that each of its tokens was given.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

import actvar_cli
from actvar_cli.model.block import Block
from actvar_cli.model.counters import WorkCounter, attention_macs, ffn_macs
from actvar_cli.model.experts import ExpertFFN
from actvar_cli.model.sampling import ActVAR, balanced_labels
from actvar_cli.profile.plots import densities

IMAGES = Path(__file__).parent.parent / "docs/images"


@contextmanager
def watching(model: ActVAR, work: Tensor) -> Iterator[None]:
    """Inside, the MACs that blocks spend on the tokens of the last scale are added to ``work`` (B, l)."""
    config, last = model.config, work.shape[1]
    length = config.tokenizer.num_tokens

    def watch(block: Block) -> list[Any]:
        kept: list[Tensor] = []

        def gate(module: torch.nn.Module, inputs: Any, scores: Tensor) -> None:
            assert model.threshold is not None
            if scores.shape[1] == last:
                kept.append(scores > model.threshold - config.scale_offsets[-1])

        def ffn(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            on = inputs[1].sum(1) if len(inputs) > 1 else None
            keep = kept.pop() if kept else torch.ones_like(work, dtype=torch.bool)
            if len(inputs[0]) != int(keep.sum()):
                return
            experts = config.experts_in(block.index)
            pairs = torch.full((len(inputs[0]),), experts) if on is None else on
            work[keep] += pairs * ffn_macs(config, 1, experts) + attention_macs(config, 1, 0, length)
            work[~keep] += attention_macs(config, 0, 1, length)

        handles = [block.ffn.register_forward_pre_hook(ffn)]
        if block.gated_scales:
            handles.append(block.token_gate.register_forward_hook(gate))
        return handles

    with ExitStack() as stack:
        for block in model.transformer.stack:
            assert isinstance(block.ffn, ExpertFFN)
            for handle in watch(block):
                stack.callback(handle.remove)
        yield


def main() -> None:
    """Sample, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="var-fashion-actvar")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.3])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = actvar_cli.load(args.model)
    classes, side = model.config.transformer.num_classes, model.config.tokenizer.patch_nums[-1]
    block = attention_macs(model.config, 1, 0, model.config.tokenizer.num_tokens) + ffn_macs(model.config, 1, 1)
    every = model.config.transformer.depth * block
    figure = Figure(figsize=(classes * 1.1, 2.4 * len(args.budgets)), layout="constrained")
    axes = figure.subplots(2 * len(args.budgets), classes)
    for number, budget in enumerate(args.budgets):
        model.set_budget(budget)
        work = torch.zeros(classes, side * side)
        with watching(model, work):
            samples = model.sample(list(range(classes)), seed=args.seed)
        for label in range(classes):
            above, below = axes[2 * number, label], axes[2 * number + 1, label]
            above.imshow(samples.images[label, 0].clamp(0, 1), cmap="gray", vmin=0, vmax=1)
            shown = below.imshow(work[label].view(side, side) / every, cmap="viridis", vmin=0, vmax=1)
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
