"""Teaches a student to go on where both rows have begun: what guidance makes of their keys and values.

Above what one row costs a student that keeps the original's weights begins as the original does (docs/method.md). Only
what `GuidedContext` adds learns here, after the other stages: at lower budgets the student stays what it was.
"""

from __future__ import annotations

import torch
from torch import Tensor

from actvar_cli.convert.recording import TeacherSamples
from actvar_cli.distill.addition import Kept, learn_addition
from actvar_cli.distill.training import Course
from actvar_cli.model.block import TeacherForced
from actvar_cli.model.config import EVERYTHING
from actvar_cli.model.guidance import over_tokens
from actvar_cli.model.rebuild import rebuilt
from actvar_cli.model.sampling import ActVAR, paired_rows, single_rows

NAME = "context"
"""What the stage is called in history and checkpoint."""

Both = list[tuple[Tensor, Tensor]]
"""Keys and values (2B, H, n, d) of every block, of both rows."""


def with_context(student: ActVAR) -> ActVAR:
    """``student``, which has learned guidance, with room for a `GuidedContext` that has no effect yet."""
    guidance = student.config.guidance
    assert guidance is not None
    changed = guidance.model_copy(update={"context": True})
    return rebuilt(student, student.config.model_copy(update={"guidance": changed}))


@torch.no_grad()
def begun(teacher: ActVAR, batch: TeacherSamples, scales: int) -> Both:
    """What the ``teacher`` leaves in the cache of its first ``scales``, which draw the tokens of ``batch``."""
    var = teacher.transformer
    length = sum(pn * pn for pn in teacher.config.tokenizer.patch_nums[:scales])
    x, cond = var.embed(*paired_rows(teacher, batch.labels, batch.tokens))
    whole, x = var.teacher_forced(), x[:, :length]
    context = TeacherForced(whole.bias[..., :length, :length], whole.scales[:length], whole.gated[:length])
    made = []
    for block, ada in zip(var.stack, var.conditions(cond), strict=True):
        _, _, scale, _, shift, _ = over_tokens(ada)
        made.append(block.attn.as_cached(block.normalise(x, scale, shift)))
        x = block(x, ada, context)
    return made


def going_on(student: ActVAR, batch: TeacherSamples, both: Both) -> Tensor:
    """Logits (B, l, V) of ``student`` for the l positions after those of ``both`` rows, with nothing left out."""
    var = student.transformer
    one = [var.guided_context(block, *pair, 1.0) for block, pair in enumerate(both)]
    logits: Tensor = var(
        *single_rows(student, batch.labels, batch.tokens), var.teacher_forced(EVERYTHING, before=one, whole=True)
    )
    return logits


def learn_context(course: Course, student: ActVAR, kept: Kept) -> None:
    """Train the guided context of ``student``, as `with_context` made it, in place; see `learn_addition`.

    Steps take turns between all numbers of scales that both rows may begin.
    """
    turns = student.config.beginnings

    def says(batch: TeacherSamples, step: int) -> Tensor:
        return going_on(student, batch, begun(course.teacher, batch, turns[step % len(turns)]))

    learn_addition(course, NAME, student, "guided_context.", says, course.settings.stages.context, kept)
