"""Cost against quality: the shipped student, its parts, and every simpler way to spend the same FLOPs.

    python benchmarks/quality.py --work /tmp/quality --count 10000 --seeds 0 1 2 --jobs 1

The variants are those of benchmarks/quality.yaml. Each is converted, distilled and measured at every budget in a
process of its own; what is done lies in --work and is not done again. Writes benchmarks/results/quality.json. On a GPU
(--device cuda --batch 500) several --jobs share it. For two CPU cores there are smaller trainings (`SIZES`):

    OMP_NUM_THREADS=1 python benchmarks/quality.py --work /tmp/quick --size quick --count 1000 --seeds 0 1 --jobs 2
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from thinner import thinner_student
from torch import Tensor

import actvar_cli
from actvar_cli.convert.convert import convert
from actvar_cli.convert.settings import ConvertSettings
from actvar_cli.distill.distill import distill
from actvar_cli.distill.settings import DistillSettings, Stages
from actvar_cli.evaluate.agreement import AgreementSums, add_agreement
from actvar_cli.evaluate.evaluate import Run, batch_seed
from actvar_cli.evaluate.images import save_folder
from actvar_cli.evaluate.reference import Reference, load_reference
from actvar_cli.model.config import ModelConfig
from actvar_cli.model.counters import WorkCounter
from actvar_cli.model.device import device_name
from actvar_cli.model.sampling import ActVAR, SamplingSettings, Setting, balanced_labels
from actvar_cli.recipe.read import find, read
from actvar_cli.recipe.steps import ConvertStep, DistillStep
from actvar_cli.weights.artefact import save
from fashion.data import download, load

HERE = Path(__file__).parent
VARIANTS = HERE / "quality.yaml"
RESULT = HERE / "results/quality.json"
KL_IMAGES = 1000
PICTURES = 1000
"""Real pictures of each class that there are to choose from."""

SIZES = {"full": (1, 1, 1.0), "half": (1, 2, 2.0), "quick": (5, 2, 0.25)}
"""What the steps of a training and their batch are divided by, and what its samples are multiplied by."""


def settings_of(variant: dict[str, Any], size: str = "full") -> tuple[ConvertSettings, DistillSettings]:
    """The steps `convert` and `distill` of the long recipe, with what ``variant`` changes, at one of `SIZES`."""
    changed = {step: variant.get(step, {}) for step in ("convert", "distill") if variant.get(step) != "none"}
    changes = [f"steps.{step}.{key}={value}" for step, keys in changed.items() for key, value in keys.items()]
    steps = read(find("var-fashion-actvar"), changes).recipe.steps
    first, second = steps[0], steps[1]
    assert isinstance(first, ConvertStep) and isinstance(second, DistillStep)
    return first.settings(ConvertSettings), shrunk(second.settings(DistillSettings), *SIZES[size])


def shrunk(settings: DistillSettings, fewer: int, smaller: int, images: float) -> DistillSettings:
    """``settings`` for a smaller training, see `SIZES`."""
    stages = {
        name: stage.model_copy(update={"steps": math.ceil(stage.steps / fewer)}) for name, stage in settings.stages
    }
    less = {"images": int(settings.images * images), "batch": settings.batch // smaller, "stages": Stages(**stages)}
    return settings.model_copy(update=less)


@torch.inference_mode()
def measured(
    model: ActVAR, original: ModelConfig, reference: Reference, count: int, seed: int, batch: int
) -> tuple[dict[str, float], Tensor]:
    """Distance, class accuracy and cost, by the ``original``, of ``count`` samples; the tokens of some, `KL_IMAGES`."""
    labels = balanced_labels(count, model.config.transformer.num_classes)
    run, tokens = Run(model, WorkCounter(model.config)), []
    for number, y in enumerate(labels.split(batch)):
        made = run.sample(y, batch_seed(seed, number), SamplingSettings(original.usual_cfg), reference)
        if number * batch < KL_IMAGES:
            tokens.append(made.tokens)
    found = run.quality(labels, reference, original).model_dump(include={"distance", "accuracy", "cost"})
    return found, torch.cat(tokens)[:KL_IMAGES]


def divergence(model: ActVAR, teacher: ActVAR, tokens: Tensor) -> float:
    """KL to the teacher in nats per token, on ``tokens`` (N, L) with classes in turn."""
    labels = balanced_labels(len(tokens), teacher.config.transformer.num_classes).to(tokens.device)
    sums = AgreementSums.empty(len(teacher.config.tokenizer.patch_nums))
    add_agreement(sums, model, teacher, labels, tokens, teacher.config.usual_cfg)
    return float(sums.kl.sum() / sums.tokens.sum())


def real_pictures(work: Path) -> Path:
    """Pictures of Fashion-MNIST that `var-fashion` was trained on, a folder for each class; written once."""
    folder = work / "pictures"
    if not folder.exists():
        images, labels = load(download(work), "train")
        for label in range(10):
            chosen = labels == label
            save_folder(work / f"pictures.part/{label}", images[chosen][:PICTURES], labels[chosen][:PICTURES])
        folder.with_suffix(".part").rename(folder)
    return folder


def student_of(
    variant: dict[str, Any], teacher: ActVAR, options: argparse.Namespace, checkpoint: Path | None
) -> ActVAR:
    """What ``variant`` makes of the original."""
    splitting, settings = settings_of(variant, options.size)
    if settings.data:
        settings = settings.model_copy(update={"data": str(real_pictures(options.work))})
    if variant.get("thinner"):
        return thinner_student(teacher, settings)
    # The original changes as it is converted, so this is another one.
    seed = variant.get("seed", 0)
    student = convert(actvar_cli.load("var-fashion", device=options.device), splitting, seed=seed).model
    if variant.get("distill") == "none":
        return student
    return distill(teacher, student, settings, seed=seed, checkpoint=checkpoint).model


def work(name: str, variant: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Make one variant and measure it at every budget; ``teacher`` is the original, measured only."""
    teacher = actvar_cli.load("var-fashion", device=options.device)
    reference = load_reference(teacher.device)
    theirs = options.work / "teacher-tokens.pt"

    def runs_of(model: ActVAR) -> list[tuple[dict[str, float], Tensor]]:
        """`measured` under each seed."""
        return [
            measured(model, teacher.config, reference, options.count, seed, options.batch) for seed in options.seeds
        ]

    if name == "teacher":
        runs = runs_of(teacher)
        part = theirs.with_suffix(".part")
        torch.save(runs[0][1].cpu(), part)
        part.replace(theirs)
        return {"runs": [run for run, _ in runs]}
    file = variant.get("model") or options.work / f"{name}.safetensors"
    if not variant.get("model") and not file.exists():
        # Minutes on a GPU, hours on a CPU: there it goes on where it was.
        checkpoint = options.work / f"{name}.ckpt" if options.device == "cpu" else None
        student = student_of(variant, teacher, options, checkpoint)
        save(file, student, {"recipe": "var-fashion-actvar", "changes": variant}, dtype="float16")
        if checkpoint:
            checkpoint.unlink(missing_ok=True)
    student = actvar_cli.load(file, device=options.device)
    while not theirs.exists():
        time.sleep(1)
    cells: list[dict[str, Any]] = []
    dense = torch.load(theirs).to(teacher.device)
    before = Setting()
    for budget in sorted(options.budgets):
        try:
            student.set_budget(budget)
        except ValueError as error:
            print(f"{name}: {error}", flush=True)
            continue
        if cells and student.setting == before:
            # It has come to its most: what was measured holds for this budget, too.
            cells.append({**cells[-1], "budget": budget})
            continue
        before = student.setting
        runs = runs_of(student)
        own = runs[0][1]
        cells.append(
            {
                "budget": budget,
                "runs": [run for run, _ in runs],
                "kl": divergence(student, teacher, dense),
                "kl_own": divergence(student, teacher, own),
                "token_match": float((own == dense).float().mean()),
            }
        )
    return {"what": variant["what"], "cells": cells}


def measurement(options: argparse.Namespace, name: str) -> Path:
    """Where what was measured of a variant lies."""
    path: Path = options.work / f"{name}.measured.json"
    return path


def gather(options: argparse.Namespace, names: list[str]) -> None:
    """Write the result of all variants that are done."""
    found = {name: json.loads(path.read_text()) for name in names if (path := measurement(options, name)).exists()}
    result = {
        "size": options.size,
        "count": options.count,
        "seeds": options.seeds,
        "teacher": found.pop("teacher", None),
        "variants": found,
        "torch": torch.__version__,
        "device": device_name(torch.device(options.device)),
    }
    options.result.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    """Run what is not done yet, ``--jobs`` at a time, and gather the results."""
    table = yaml.safe_load(VARIANTS.read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--budgets", type=float, nargs="+", default=table["budgets"])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--size", choices=SIZES, default="full", help="of the trainings")
    parser.add_argument("--only", help="variants, with commas between")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    variants = {"teacher": {}, **table["variants"]}
    if options.worker:
        made = work(options.worker, variants[options.worker], options)
        measurement(options, options.worker).write_text(json.dumps(made))
        return
    names = ["teacher", *(options.only.split(",") if options.only else table["variants"])]
    waiting = [name for name in names if not measurement(options, name).exists()]
    running: dict[str, subprocess.Popen[bytes]] = {}
    while waiting or running:
        while waiting and len(running) < options.jobs:
            name = waiting.pop(0)
            running[name] = subprocess.Popen([sys.executable, *sys.argv, "--worker", name])
            print(f"{name}: started, {len(waiting)} waiting", flush=True)
        time.sleep(0.5)
        for name in [name for name, process in running.items() if process.poll() is not None]:
            failed = running.pop(name).returncode != 0
            print(f"{name}: {'FAILED' if failed else 'done'}", flush=True)
            gather(options, names)
            if failed and name == "teacher":
                # The others wait for its tokens, which they are compared on.
                for process in running.values():
                    process.kill()
                raise SystemExit(1)
    gather(options, names)


if __name__ == "__main__":
    main()
