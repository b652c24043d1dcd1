"""Teaches the row with a class what guidance makes of both rows, so that the other need not be computed.

Only embeddings learn: the model without them stays what it was. Source: guidance distillation, arXiv 2210.03142; that
embeddings suffice, and that they take part in proportion to the strength of guidance, is ours (docs/method.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from actvar_cli.convert.recording import TeacherSamples
from actvar_cli.distill.addition import Kept, learn_addition
from actvar_cli.distill.checkpoint import load_weights, read_state
from actvar_cli.distill.training import Course
from actvar_cli.model.config import GuidanceConfig
from actvar_cli.model.rebuild import rebuilt
from actvar_cli.model.sampling import ActVAR, single_rows

NAME = "guidance"
"""What the stage is called in history and checkpoint."""

GUIDED = "guided"
"""What later stages call the embeddings as this one left them, in their checkpoints: a student's go on learning."""


def with_guidance(model: ActVAR, guidance: GuidanceConfig) -> ActVAR:
    """``model`` with embeddings for guidance that have no effect yet; its other weights are shared."""
    return rebuilt(model, model.config.model_copy(update={"guidance": guidance}))


def learn_guidance(course: Course) -> ActVAR:
    """The teacher with guidance learned: at a threshold, one row predicts what guidance makes of the teacher's two.

    Goes on from the checkpoint, also from one of a later stage.
    """
    stage, checkpoint = course.settings.stages.guidance, course.checkpoint
    model = with_guidance(course.teacher, GuidanceConfig(cfg=stage.cfg))
    var = model.transformer
    state = read_state(checkpoint)
    if checkpoint and state and state["stage"] != NAME:
        load_weights(checkpoint, var.guidance, GUIDED)
        return model

    def says(batch: TeacherSamples, step: int) -> Tensor:
        logits: Tensor = var(*single_rows(model, batch.labels, batch.tokens), var.teacher_forced(-torch.inf))
        return logits

    learn_addition(course, NAME, model, "guidance.", says, stage, Kept(course.identity))
    return model
