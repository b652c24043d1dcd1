"""What a student's teacher-forced pass does at a threshold, and at which one it costs a budget."""

from __future__ import annotations

import torch

from actvar_cli.convert.recording import TeacherSamples, decisions_at
from actvar_cli.distill.cost import CostModel
from actvar_cli.model.sampling import ActVAR

SCORES, PRECISION, PASSES = (-30.0, 10.0), 0.005, 5
"""Where thresholds are looked for, how precisely, and passes over the samples that finding one may take."""


@torch.no_grad()
def threshold_for(student: ActVAR, samples: TeacherSamples, budget: float, images: int = 16) -> float:
    """The threshold at which a teacher-forced pass costs ``budget``.

    Where the scores of one pass would cost that is found by halving, without computing more; a few passes are enough,
    since the scores follow what is left out only a little.
    """
    cost_model, threshold = CostModel(student.config, student.device), -torch.inf
    at_zero = student.transformer.teacher_forced(0.0)
    assert at_zero.threshold is not None
    for _ in range(PASSES):
        made = decisions_at(student, samples, threshold, images)
        low, high, before = *SCORES, threshold
        while high - low > PRECISION:
            threshold = (low + high) / 2
            cost = cost_model([block.at(at_zero.threshold + threshold, at_zero.gated) for block in made])
            low, high = (threshold, high) if cost > budget else (low, threshold)
        if abs(threshold - before) <= 2 * PRECISION:
            break
    return threshold


@torch.no_grad()
def score_spread(student: ActVAR, samples: TeacherSamples, threshold: float, images: int = 8) -> float:
    """Standard deviation of all routers' scores in a teacher-forced pass at ``threshold``."""
    made = decisions_at(student, samples, threshold, images)
    return float(torch.cat([block.scores.flatten() for block in made if block.scores is not None]).std())


@torch.no_grad()
def expert_density(student: ActVAR, samples: TeacherSamples, threshold: float, images: int = 8) -> float:
    """Share of the FFNs' work that is done in a teacher-forced pass at ``threshold``."""
    made = decisions_at(student, samples, threshold, images)
    return float(torch.stack([block.on.mean() for block in made if block.on is not None]).mean())
