"""What a recipe would take: disk, memory and time of every step, estimated without doing it.

The work is counted in images sampled and trained on, times the dense model's MACs; the machine's speed is measured in
a fraction of a second. Expect the right order of magnitude, not the right minute.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actvar_cli.convert.settings import TOKENS, affordable_images
from actvar_cli.recipe.pictures import SHOWN_CLASSES
from actvar_cli.recipe.steps import (
    AnyStep,
    ConvertStep,
    DistillStep,
    EvaluateStep,
    ExportStep,
    ProfileStep,
    ReportStep,
    SampleStep,
)

if TYPE_CHECKING:
    from actvar_cli.model.config import ModelConfig
    from actvar_cli.recipe.run import Run

CALIBRATION_IMAGES = 500
"""Images that are sampled densely that finding the thresholds of all budgets amounts to, about."""

REFIT_IMAGES = 4 * 256
"""Images that are sampled densely that the refit of a distillation amounts to, about."""

BYTES = 4
"""Of one float32 number, as which everything is computed."""

SHARE_OF_PEAK = 0.5
"""Speed of a transformer's small products beside that of one large product."""


@dataclass(frozen=True)
class Estimate:
    """``disk`` and ``memory`` in bytes, ``seconds`` of work."""

    disk: int
    memory: int
    seconds: float


def measured_speed(device: str, seconds: float = 0.2) -> float:
    """MACs per second of a large float32 product on ``device``."""
    import torch

    from actvar_cli.model.device import synchronise

    size = 512 if device == "cpu" else 4096
    a = torch.ones(size, size, device=device)
    a @ a
    synchronise(a.device)
    until, fastest = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < until:
        began = time.perf_counter()
        a @ a
        synchronise(a.device)
        # The fastest counts: whatever else the machine does just now may be over soon.
        fastest = min(fastest, time.perf_counter() - began)
    return float(size) ** 3 / fastest


def parameters(config: ModelConfig) -> int:
    """Parameters of the transformer and its tokenizer."""
    import torch

    from actvar_cli.model.tokenizer import Tokenizer
    from actvar_cli.model.var import VAR

    with torch.device("meta"):
        modules = VAR(config), Tokenizer(config.tokenizer)
    return sum(p.numel() for module in modules for p in module.parameters())


def passes(step: AnyStep, config: ModelConfig) -> float:
    """How many times a step does the work of sampling one image densely; a backward pass counts twice."""
    classes = config.transformer.num_classes
    match step:
        case ConvertStep():
            # A large model is measured at few thresholds, on few images.
            return step.images_for(config) + min(CALIBRATION_IMAGES, 2 * affordable_images(config, CALIBRATION_IMAGES))
        case DistillStep():
            guidance, steps = step.stages.guidance.steps, step.stages.learning
            # Each: the teacher forward, the student forward and backward; with guidance learned that is one row of two,
            # and what it should look like inside is computed too, but the teacher's logits may have been kept.
            teacher = 0 if step.kept_logits(config) else 1
            work = guidance * (1.5 + teacher) + steps * (2 + teacher if guidance else 4)
            # Of the first scales the teacher's rows, of the others the student's one.
            work += step.stages.context.steps * (1 + teacher)
            refit = REFIT_IMAGES if step.learns == "experts" else 0
            return 2 * step.images + refit + work * step.batch + CALIBRATION_IMAGES
        case ProfileStep():
            return step.batch_for(config) * (2 + 2 * (step.repeats + 1))
        case EvaluateStep():
            return 2 * step.count + 2 * min(step.count, 1000)
        case SampleStep():
            return step.count * (len(step.classes) if step.classes else min(classes, SHOWN_CLASSES))
        case ReportStep():
            return 2 * step.count * min(classes, step.classes)
        case ExportStep():
            return 0


def estimate(step: AnyStep, config: ModelConfig, *, speed: float) -> Estimate:
    """Disk, memory and time of ``step`` on models of ``config``, at ``speed`` MACs per second."""
    from actvar_cli.model.cache import bytes_of_image
    from actvar_cli.model.counters import dense_macs

    weights = BYTES * parameters(config)
    width, depth, length = config.transformer.embed_dim, config.transformer.depth, config.tokenizer.num_tokens
    # Activations of one image (two rows) through one block: some twenty arrays as wide as the model.
    activations = 2 * 20 * length * width * BYTES
    work = passes(step, config)
    memory, disk = weights, 0
    if isinstance(step, ConvertStep):
        # What the routers are fitted to, as bfloat16, and the keys and values of one image.
        memory, disk = weights + depth * width * (TOKENS * 2 + 4 * length * BYTES), weights
    elif isinstance(step, DistillStep):
        # Teacher, student, and for what learns its gradients and two moments.
        memory, disk = 5 * weights + step.batch * activations * depth, weights
        memory += step.kept_logits(config) if step.stages.guidance.steps else 0
    elif isinstance(step, ExportStep):
        disk = weights if step.dtype == "float32" else weights // 2
    elif isinstance(step, ReportStep):
        memory = 2 * weights + 50 * activations
    else:
        models = 2 if isinstance(step, EvaluateStep) else 1
        memory = models * weights + step.batch_for(config) * (activations + bytes_of_image(config, BYTES))
    return Estimate(disk, memory, work * dense_macs(config) / (speed * SHARE_OF_PEAK))


def estimate_plan(run: Run) -> list[dict[str, Any]]:
    """Every step of ``run`` with what it would take.

    Figures are ``None`` where it is cached, or nothing on this machine tells its model's configuration.
    """
    planned = run.plan()
    configs = [None if entry.outcome else run.config(entry.flow) for entry in planned]
    speed = measured_speed(run.device) if any(configs) else 0.0
    entries = []
    for entry, config in zip(planned, configs, strict=True):
        known = estimate(entry.step, config, speed=speed) if config else None
        entries.append(
            {
                "name": entry.flow.name,
                "step": entry.flow.verb,
                "cached": entry.outcome is not None,
                "disk_bytes": known and known.disk,
                "memory_bytes": known and known.memory,
                "seconds": known and round(known.seconds, 1),
            }
        )
    return entries
