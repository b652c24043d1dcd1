"""What the teacher does on its own samples, and which threshold costs what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actvar_cli.model.block import Decisions, Record, TeacherForced
from actvar_cli.model.config import Dial
from actvar_cli.model.counters import WorkCounter
from actvar_cli.model.sampling import ActVAR, balanced_labels, paired_rows
from actvar_cli.progress import Progress


@dataclass(frozen=True)
class TeacherSamples:
    """Images drawn from a model, as ``labels`` (N,) and ``tokens`` (N, L)."""

    labels: Tensor
    tokens: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)


def draw_samples(teacher: ActVAR, count: int, *, seed: int, progress: Progress, batch: int = 32) -> TeacherSamples:
    """Sample ``count`` images with classes in turn; CFG as in `SamplingSettings`."""
    labels = balanced_labels(count, teacher.config.transformer.num_classes)
    tokens: list[Tensor] = []
    with progress.task("sampling the teacher", count) as task:
        for i, part in enumerate(labels.split(batch)):
            tokens.append(teacher.sample(part, seed=seed + i).tokens)
            task.advance(len(part))
    return TeacherSamples(labels.to(teacher.device), torch.cat(tokens))


@torch.no_grad()
def decisions_at(model: ActVAR, samples: TeacherSamples, threshold: float, images: int) -> list[Decisions]:
    """What every block decides at ``threshold``, teacher-forced on both rows of the first ``images`` samples."""
    rows, var_input = paired_rows(model, samples.labels[:images], samples.tokens[:images])
    context = model.transformer.teacher_forced(threshold)
    model.transformer(rows, var_input, context)
    return context.decisions


@torch.no_grad()
def record_blocks(
    model: ActVAR,
    samples: TeacherSamples,
    *,
    positions: Tensor,
    per_image: int,
    threshold: float | None,
    generator: torch.Generator,
    progress: Progress,
    label: str,
    batch: int = 8,
) -> list[Record]:
    """Run teacher-forced over ``samples`` and keep, from every block, ``per_image`` random tokens per image.

    ``positions`` (P,) are the positions of the sequence to choose from. Both rows of CFG take part.
    """
    length = model.config.tokenizer.num_tokens
    chunks: list[list[Record]] = []
    with progress.task(label, len(samples)) as task:
        for i in range(0, len(samples), batch):
            labels, tokens = samples.labels[i : i + batch], samples.tokens[i : i + batch]
            rows, var_input = paired_rows(model, labels, tokens)
            count = per_image * len(labels)
            choice = torch.randint(len(positions), (count,), generator=generator)
            row = torch.randint(len(rows), (count,), generator=generator)
            pick = row.to(model.device) * length + positions.to(model.device)[choice.to(model.device)]
            context: TeacherForced = model.transformer.teacher_forced(threshold, pick=pick)
            model.transformer(rows, var_input, context)
            chunks.append(context.records)
            task.advance(len(labels))
    names = ("h", "h_ffn", "gain", "update", "out")
    return [
        Record(*(torch.cat([getattr(chunk[b], name) for chunk in chunks]) for name in names))
        for b in range(model.config.transformer.depth)
    ]


@torch.inference_mode()
def measured_cost(model: ActVAR, threshold: float, *, images: int, seed: int) -> float:
    """Cost of free-running sampling at ``threshold``, counted by the model on ``images`` images."""
    counter = WorkCounter(model.config)
    before, model.threshold = model.threshold, threshold
    try:
        labels = balanced_labels(images, model.config.transformer.num_classes)
        model.sample(labels, seed=seed, counter=counter)
    finally:
        model.threshold = before
    return counter.cost


def calibrate_dials(
    model: ActVAR,
    budgets: Sequence[float],
    *,
    span: tuple[float, float],
    seed: int,
    progress: Progress,
    images: int = 24,
) -> tuple[Dial, ...]:
    """Find, for each budget that can be reached, the threshold at which real sampling costs just that.

    ``span`` brackets the thresholds. Cost falls as the threshold rises, though free-running sampling makes it jitter a
    little: the search narrows by interpolation and halving and takes the nearest threshold seen.
    """
    seen: dict[float, float] = {}
    dials: list[Dial] = []

    def cost(threshold: float) -> float:
        if threshold not in seen:
            seen[threshold] = measured_cost(model, threshold, images=images, seed=seed)
        return seen[threshold]

    with progress.task("calibrating budgets", len(budgets)) as task:
        for budget in sorted(budgets):
            low, high = span
            if not cost(high) < budget < cost(low):
                task.advance(note=f"{budget:g} out of reach")
                continue
            for _ in range(10):
                low = max((t for t in seen if t <= high and seen[t] >= budget), default=low)
                high = min((t for t in seen if t > low and seen[t] < budget), default=high)
                share = (cost(low) - budget) / max(cost(low) - cost(high), 1e-9)
                # Kept off the ends, so that both sides close in where the curve is bent.
                threshold = low + min(max(share, 0.15), 0.85) * (high - low)
                if abs(cost(threshold) - budget) < 0.002:
                    break
            best = min(seen, key=lambda t: abs(seen[t] - budget))
            dials.append(Dial(budget=budget, threshold=best, cost=seen[best]))
            task.advance(note=f"{budget:g}")
    return tuple(dials)
