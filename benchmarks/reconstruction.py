"""How much of what attention adds to a token each kind of reconstruction explains, on pictures it was not fitted to.

    python benchmarks/reconstruction.py --images 256

The last scales' tokens are left out on a grid, every second one or three of four, one block at a time. Writes
benchmarks/results/reconstruction.json.
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
from actvar_cli.distill.token_stage import LeftOut, add_token_gates, left_out, record_gated
from actvar_cli.model.block import Record
from actvar_cli.model.config import ReconstructionKind
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


@torch.no_grad()
def main() -> None:
    """Record, fit on one half of the pictures, and measure on the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="var-fashion-actvar")
    parser.add_argument("--budget", type=float, default=0.3)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    progress, generator = Progress(), torch.Generator().manual_seed(0)
    student = actvar_cli.load(options.model)
    student.set_budget(options.budget)
    assert student.threshold is not None
    # The kind that has most recorded; what the others do not need they do not read.
    stage = TokensStage(gate="grid", reconstruction="previous+low-rank", rank=options.rank)
    threshold, student = student.threshold, add_token_gates(student, stage)
    config, last = student.config, len(student.config.tokenizer.patch_nums) - 1
    samples = draw_samples(
        actvar_cli.load("var-fashion"), options.images, seed=1, progress=progress, settings=SamplingSettings(cfg=1.5)
    )
    records, _ = record_gated(student, samples, None, threshold, generator, progress)
    cut = int(student.transformer.gated_positions().sum()) * (options.images // 2)
    assert config.token_gate is not None
    found: dict[str, dict[str, list[float]]] = {}
    for kind in get_args(ReconstructionKind):
        gate = config.token_gate.model_copy(update={"reconstruction": kind})
        found[kind] = {name: [] for name in STEPS.values()}
        for record in records:
            net = Reconstruction(config.transformer.embed_dim, gate)
            ours, theirs = (
                Record(*(x[part] for x in vars(record).values())) for part in (slice(cut), slice(cut, None))
            )
            fit_reconstruction(net, left_out(net, ours, config).record)
            seen = left_out(net, theirs, config)
            for step, name in STEPS.items():
                found[kind][name].append(explained(net, seen, step, last))
        print(kind, {name: [round(v, 3) for v in values] for name, values in found[kind].items()}, flush=True)
    result = {**{k: v for k, v in vars(options).items() if k != "result"}, "explained": found}
    options.result.write_text(json.dumps({**result, "torch": torch.__version__}, indent=1) + "\n")


if __name__ == "__main__":
    main()
