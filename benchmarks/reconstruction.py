"""How much of a token that is left out each kind of reconstruction explains, on pictures it was not fitted to.

    python benchmarks/reconstruction.py --images 256

Of what attention adds to it, and of its keys and values. The last scales' tokens are left out on a grid, every second
one or three of four, one block at a time. Writes benchmarks/results/reconstruction.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import get_args

import torch

import actvar_cli
from actvar_cli.convert.recording import draw_samples
from actvar_cli.convert.regression import fit_reconstruction
from actvar_cli.distill.settings import TokensStage
from actvar_cli.distill.token_stage import (
    LeftOut,
    add_token_gates,
    fit_kv_reconstruction,
    left_out,
    record_gated,
    without_token_gates,
)
from actvar_cli.model.attention import SelfAttention
from actvar_cli.model.block import Record
from actvar_cli.model.config import ModelConfig, ReconstructionKind
from actvar_cli.model.sampling import SamplingSettings
from actvar_cli.model.token_gate import Reconstruction
from actvar_cli.progress import Progress

RESULT = Path(__file__).parent / "results/reconstruction.json"
STEPS = {0: "half", 1: "three of four"}


def explained(net: Reconstruction, seen: LeftOut, step: int, scale: int) -> float:
    """Share of the energy of the updates of the tokens left out on ``scale`` in ``step`` that ``net`` explains."""
    here = (seen.step == step) & (seen.scale == scale)
    record = seen.record
    known = record.known[here] if net.reads_known else None
    update = record.update[here]
    return float(1 - (net(record.h[here], known) - update).square().sum() / update.square().sum())


def keys_and_values(
    attn: SelfAttention, config: ModelConfig, ours: Record, theirs: Record, rank: int, *, around: bool
) -> list[float]:
    """Share of the variance of keys and values on the last scale that a map explains, by step, fitted to ``ours``.

    Of the token itself, or with ``around`` of how it differs from those. Rank 0 is no map.
    """
    dim, last = config.transformer.embed_dim, len(config.tokenizer.patch_nums) - 1
    net = Reconstruction(dim, 2 * dim, rank, "low-rank") if rank else None
    if net:
        fit_kv_reconstruction(attn, net, left_out(ours, config, around=around).record.h, around=around)
    seen, shares = left_out(theirs, config, around=around), []
    for step in STEPS:
        here = (seen.step == step) & (seen.scale == last)
        read, whole = seen.record.h[here], attn.keys_and_values(seen.h[here])
        wanted = attn.keys_and_values(read, constant=not around)
        made = net(read) if net else torch.zeros(())
        shares.append(float(1 - (made - wanted).square().sum() / (whole - whole.mean(0)).square().sum()))
    return shares


@torch.no_grad()
def main() -> None:
    """Record, fit on one half of the pictures, and measure on the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="var-fashion-actvar")
    parser.add_argument("--budget", type=float, default=0.3)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--kv-ranks", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    progress, generator = Progress(), torch.Generator().manual_seed(0)
    student = actvar_cli.load(options.model)
    student.set_budget(options.budget)
    assert student.threshold is not None
    # The kind that has most recorded; what the others do not need they do not read.
    stage = TokensStage(gate="grid", reconstruction="previous+low-rank", rank=options.rank)
    threshold, student = student.threshold, add_token_gates(without_token_gates(student), stage)
    config, last = student.config, len(student.config.tokenizer.patch_nums) - 1
    samples = draw_samples(
        actvar_cli.load("var-fashion"), options.images, seed=1, progress=progress, settings=SamplingSettings(cfg=1.5)
    )
    records, _ = record_gated(student, samples, None, threshold, generator, progress)
    cut = int(student.transformer.gated_positions().sum()) * (options.images // 2)
    dim = config.transformer.embed_dim
    halves = [
        [Record(*(x[part] for x in vars(record).values())) for part in (slice(cut), slice(cut, None))]
        for record in records
    ]
    found: dict[str, dict[str, list[float]]] = {}
    for kind in get_args(ReconstructionKind):
        found[kind] = {name: [] for name in STEPS.values()}
        for ours, theirs in halves:
            net = Reconstruction(dim, dim, options.rank, kind)
            fit_reconstruction(net, left_out(ours, config, around=net.from_neighbours).record)
            seen = left_out(theirs, config, around=net.from_neighbours)
            for step, name in STEPS.items():
                found[kind][name].append(explained(net, seen, step, last))
        print(kind, {name: [round(v, 3) for v in values] for name, values in found[kind].items()}, flush=True)
    kv: dict[str, dict[str, list[float]]] = {}
    for kind, ranks in (("low-rank", options.kv_ranks), ("neighbours", [0]), ("neighbours+low-rank", options.kv_ranks)):
        for rank in ranks:
            shares = [
                keys_and_values(block.attn, config, *half, rank, around="neighbours" in kind)
                for block, half in zip(student.transformer.stack, halves, strict=True)
            ]
            kv[f"{kind}, rank {rank}" if rank else kind] = {
                name: [of_block[step] for of_block in shares] for step, name in STEPS.items()
            }
            print(kind, rank, [round(of_block[0], 3) for of_block in shares], flush=True)
    result = {**{k: v for k, v in vars(options).items() if k != "result"}, "explained": found, "keys_and_values": kv}
    options.result.write_text(json.dumps({**result, "torch": torch.__version__}, indent=1) + "\n")


if __name__ == "__main__":
    main()
