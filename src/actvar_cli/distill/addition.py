"""A stage in which what was added to a model learns alone, by what the model says, and all else is fixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from actvar_cli.convert.recording import TeacherSamples
from actvar_cli.distill.checkpoint import load_checkpoint, read_state, save_checkpoint
from actvar_cli.distill.losses import kl_divergence, scale_weights
from actvar_cli.distill.optimiser import Optimiser
from actvar_cli.distill.settings import ContextStage, GuidanceStage
from actvar_cli.distill.training import Course, batch_of, taught, training
from actvar_cli.model.guidance import guidance_by_position
from actvar_cli.model.sampling import ActVAR

CHECKPOINT_EVERY = 50
"""Optimiser steps between two checkpoints."""

Says = Callable[[TeacherSamples, int], Tensor]
"""The logits (B, l, V) of a batch's last l positions, all or some, in the step of a number."""


class Kept(NamedTuple):
    """What checkpoints hold of a training besides how far a stage got: JSON, and weights of others than the model's."""

    state: dict[str, Any]
    parts: Mapping[str, nn.Module] = {}


def learn_addition(
    course: Course,
    name: str,
    model: ActVAR,
    part: str,
    says: Says,
    stage: GuidanceStage | ContextStage,
    kept: Kept,
) -> None:
    """Train the parameters of ``model`` with ``part`` in their names to say what guidance makes of the teacher.

    Goes on from the checkpoint where that is of this stage, called ``name``.
    """
    checkpoint, history = course.checkpoint, course.history
    learned = model.config.guidance
    assert learned is not None
    strengths = guidance_by_position(model.config, learned.cfg, model.device)
    weights = scale_weights(model.config.tokenizer.patch_nums, model.device)
    with (
        training(model, (part,)) as parameters,
        course.progress.task(f"distilling {name}", stage.steps) as task,
    ):
        optimiser = Optimiser(
            parameters, lr=stage.lr, steps=stage.steps, precision=course.settings.precision, device=model.device
        )
        done, before = 0, read_state(checkpoint)
        if checkpoint and before and before["stage"] == name:
            load_checkpoint(checkpoint, model.transformer, optimiser)
            done, history[:] = before["step"], before["history"]
            task.advance(done)
        for step in range(done, stage.steps):
            batch = batch_of(course.samples, course.settings.batch, course.seed + step)
            with optimiser.autocast:
                logits = says(batch, step)
                last = slice(-logits.shape[1], None)
                target = taught(course.teacher, batch, strengths)[:, last]
            loss = kl_divergence(logits, target, weights[last])
            norm = optimiser.step(loss, step)
            kl = float(loss.detach())
            history.append({"stage": name, "step": step, "loss": kl, "kl": kl, "grad_norm": float(norm)})
            task.advance(note=f"kl {kl:.4f}")
            if checkpoint and (step + 1) % CHECKPOINT_EVERY == 0:
                state = kept.state | {"stage": name, "step": step + 1, "history": history}
                save_checkpoint(checkpoint, {"model": model.transformer, **kept.parts}, optimiser, state)
