"""What the stages' training loops have in common: what learns, on which samples, and for which budget."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from actvar_cli.convert.recording import TeacherSamples, draw_samples
from actvar_cli.distill.settings import DistillSettings
from actvar_cli.model.config import DeltaConfig
from actvar_cli.model.guidance import guide
from actvar_cli.model.rebuild import rebuilt
from actvar_cli.model.sampling import ActVAR, Setting, paired_rows
from actvar_cli.progress import Progress

RECENT = 10
"""Steps at a budget over which its divergence is averaged."""

OWN_BATCHES = 2
"""How many batches' worth of sequences the student draws at a time."""

NEARLY, SELDOM = 0.95, 4
"""From which share of all work on next to nothing is left out, and how many rounds of others a step there waits for."""

LONG = 4500
"""Of so many steps there are enough to take as many where next to nothing is left out as elsewhere."""


@dataclass(frozen=True)
class Course:
    """What all stages of a training share: who teaches what and how, and where they say and keep how far they got."""

    teacher: ActVAR
    samples: TeacherSamples
    settings: DistillSettings
    seed: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    checkpoint: Path | None = None
    progress: Progress = field(default_factory=Progress)

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree in to be gone on from, as JSON."""
        return {"settings": self.settings.model_dump(mode="json"), "seed": self.seed}


@contextmanager
def training(model: ActVAR, parts: tuple[str, ...]) -> Iterator[dict[str, nn.Parameter]]:
    """Only the transformer's parameters with one of ``parts`` in their names take gradients inside; none afterwards.

    Nor do weights that there is a `Delta` of.
    """
    fixed = model.transformer.delta.names if model.config.delta else ()
    chosen = {
        name: parameter
        for name, parameter in model.transformer.named_parameters()
        if any(part in name for part in parts) and name not in fixed
    }
    model.requires_grad_(False)
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    try:
        yield chosen
    finally:
        model.requires_grad_(False)


def with_delta(student: ActVAR, budgets: int) -> ActVAR:
    """``student`` with weights that can move with the threshold, and do not yet; those it has are shared."""
    # The thresholds of so many budgets are known only when a stage begins: see `place_delta`.
    thresholds = tuple(float(number) for number in range(budgets))
    made = rebuilt(student, student.config.model_copy(update={"delta": DeltaConfig(thresholds=thresholds)}))
    made.transformer.delta.begin()
    return made


def place_delta(student: ActVAR, thresholds: Sequence[float]) -> None:
    """Let what is learned at each of ``thresholds``, in any order, be the weights there."""
    student.configure(delta=DeltaConfig(thresholds=tuple(sorted(thresholds))))


def batch_of(samples: TeacherSamples, size: int, seed: int) -> TeacherSamples:
    """``size`` of the samples; the same ones under the same ``seed``."""
    return samples[torch.randint(len(samples), (size,), generator=torch.Generator().manual_seed(seed))]


@torch.no_grad()
def taught(teacher: ActVAR, batch: TeacherSamples, guidance: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
    """The teacher's logits (B, L, V) after ``guidance``, from its two rows, as they were kept or computed now.

    ``hidden`` collects the output of every block, (2B, L, C), for which they are computed in any case.
    """
    if batch.logits is not None and hidden is None:
        return batch.logits.float()
    return guide(teacher.transformer(*paired_rows(teacher, batch.labels, batch.tokens), hidden=hidden), guidance)


class Sequences:
    """What a stage trains on: samples of the teacher, and for a ``share`` of every batch those of the student itself.

    Those it meets when it samples freely; they are drawn anew, at one threshold after the other, as it learns.
    """

    def __init__(
        self, samples: TeacherSamples, student: ActVAR, share: float, size: int, thresholds: Sequence[float]
    ) -> None:
        self.samples, self.student, self.thresholds = samples, student, thresholds
        self.own = max(1, round(share * size)) if share else 0
        self.size = size
        self.drawn: TeacherSamples | None = None

    def renew(self, seed: int) -> None:
        """Draw the student's own sequences anew; their thresholds and classes take turns with ``seed``."""
        if not self.own:
            return
        student, count = self.student, OWN_BATCHES * self.size
        with student.at(Setting(self.thresholds[seed % len(self.thresholds)])):
            self.drawn = draw_samples(
                student,
                count,
                seed=seed,
                progress=Progress(),
                first=seed // len(self.thresholds),
            )

    def batch(self, seed: int) -> list[TeacherSamples]:
        """One batch: the teacher's, and the student's own if there are any."""
        parts = [batch_of(self.samples, self.size - self.own, seed)]
        return parts if self.drawn is None else [*parts, batch_of(self.drawn, self.own, seed)]


def turns(budgets: Sequence[float], most: float, steps: int) -> list[int]:
    """The numbers of ``budgets`` in the order in which ``steps`` are taken at them, over and over: one after the other.

    Where next to nothing is left out, of what costs ``most``, there is less to learn: in a short training such a budget
    comes once in `SELDOM` rounds of the others, in one of `LONG` steps in each.
    """
    idle = [number for number, budget in enumerate(budgets) if budget > NEARLY * most]
    rounds = min(SELDOM, max(1, LONG // max(1, steps)))
    return [number for number in range(len(budgets)) if number not in idle] * rounds + idle


def budget_weight(budget: float, history: Sequence[Mapping[str, Any]], stage: str, budgets: int) -> float:
    """What the loss at ``budget`` is multiplied by: half of the way to an equal say for all ``budgets``.

    At a low one a student errs the most; by the loss alone it would learn for that one and forget the others. How much
    it errs is its mean divergence among the last `RECENT` steps for each budget; before it has any, the factor is 1.
    """
    seen: dict[float, list[float]] = defaultdict(list)
    for entry in history[-RECENT * budgets :]:
        if entry["stage"] == stage and math.isfinite(entry["kl"]):
            seen[entry["budget"]].append(entry["kl"])
    if budget not in seen:
        return 1.0
    means = {b: max(mean(divergences), 1e-9) for b, divergences in seen.items()}
    return math.sqrt(mean(means.values()) / means[budget])
