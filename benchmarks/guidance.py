"""What one row that has learned guidance is worth: before any expert or token is left out, at half the cost.

    python benchmarks/guidance.py --steps 150 --count 2000

Learns guidance for `var-fashion` as the recipe's first stage does, and compares with the original at several strengths.
Writes benchmarks/results/guidance.json.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from pathlib import Path

import torch

import actvar_cli
from actvar_cli.convert.recording import TeacherSamples, draw_samples
from actvar_cli.distill.guidance_stage import learn_guidance
from actvar_cli.distill.settings import DistillSettings, GuidanceStage, Stages
from actvar_cli.distill.training import Course
from actvar_cli.evaluate.evaluate import evaluate
from actvar_cli.model.sampling import ActVAR, paired_rows
from actvar_cli.progress import Progress

RESULT = Path(__file__).parent / "results/guidance.json"
LAST_SCALES = 3
STRENGTHS = (0.0, 0.75, 1.5, 2.0)


@torch.no_grad()
def explained(model: ActVAR, samples: TeacherSamples, images: int = 64) -> list[float]:
    """By block: the share of the energy of the unconditional row's updates that those of the conditional row explain.

    On the last scales, the same tokens in both rows.
    """
    var = model.transformer
    rows, var_input = paired_rows(model, samples.labels[:images], samples.tokens[:images])
    x, cond = var.embed(rows, var_input)
    late = var.lvl_1L[0] >= len(model.config.tokenizer.patch_nums) - LAST_SCALES
    shares = []
    for block, ada in zip(var.stack, var.conditions(cond), strict=True):
        out = block(x, ada, var.teacher_forced())
        conditional, unconditional = (out - x)[:, late].chunk(2)
        missing = (conditional - unconditional).square().sum()
        shares.append(float(1 - missing / unconditional.square().sum()))
        x = out
    return shares


def main() -> None:
    """Learn, compare, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--images", type=int, default=768)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--count", type=int, default=2000)
    options = parser.parse_args()
    teacher, progress = actvar_cli.load("var-fashion"), Progress()
    samples = draw_samples(teacher, options.images, seed=1_000_000, progress=progress)
    stages = Stages(guidance=GuidanceStage(steps=options.steps))
    settings = DistillSettings(images=options.images, batch=options.batch, stages=stages)
    model = learn_guidance(Course(teacher, samples, settings, progress=progress))
    model.threshold = -math.inf
    rows = []
    for cfg in STRENGTHS:
        found = evaluate(model, teacher, count=options.count, cfg=cfg, progress=progress)
        for quality, kl in ((found.teacher, None), (found.student, found.agreement.kl)):
            one = kl is not None
            row = {"rows": 1 if one else 2, "cfg": cfg, "cost": quality.cost, "distance": quality.distance}
            rows.append({**row, "accuracy": quality.accuracy, "kl": kl})
            print(rows[-1], flush=True)
    result = {
        "explained_by_block": explained(teacher, samples),
        "rows": rows,
        **vars(options),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
