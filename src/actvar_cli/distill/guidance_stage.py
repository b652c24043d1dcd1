"""Teaches the row with a class what guidance makes of both rows, so that the other need not be computed.

Only embeddings learn: the model without them stays what it was. Source: guidance distillation, arXiv 2210.03142; that
embeddings suffice, and that they take part in proportion to the strength of guidance, is ours (docs/method.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from actvar_cli.convert.recording import TeacherSamples
from actvar_cli.distill.checkpoint import load_checkpoint, load_weights, read_state, save_checkpoint
from actvar_cli.distill.losses import kl_divergence, scale_weights
from actvar_cli.distill.optimiser import Optimiser
from actvar_cli.distill.settings import DistillSettings
from actvar_cli.distill.training import batch_of, taught, training
from actvar_cli.model.config import GuidanceConfig
from actvar_cli.model.guidance import guidance_by_position
from actvar_cli.model.rebuild import rebuilt
from actvar_cli.model.sampling import ActVAR, single_rows
from actvar_cli.progress import Progress

NAME = "guidance"
"""What the stage is called in history and checkpoint."""

GUIDED = "guided"
"""What later stages call the embeddings as this one left them, in their checkpoints: a student's go on learning."""

CHECKPOINT_EVERY = 50
"""Optimiser steps between two checkpoints."""


def with_guidance(model: ActVAR, guidance: GuidanceConfig) -> ActVAR:
    """``model`` with embeddings for guidance that have no effect yet; its other weights are shared."""
    return rebuilt(model, model.config.model_copy(update={"guidance": guidance}))


def learn_guidance(
    teacher: ActVAR,
    samples: TeacherSamples,
    settings: DistillSettings,
    *,
    seed: int,
    history: list[dict[str, Any]],
    checkpoint: Path | None,
    progress: Progress,
) -> ActVAR:
    """The teacher with guidance learned: at a threshold, one row predicts what guidance makes of the teacher's two.

    Goes on from ``checkpoint``, also from one of a later stage.
    """
    stage = settings.stages.guidance
    model = with_guidance(teacher, GuidanceConfig(cfg=stage.cfg))
    var = model.transformer
    state = read_state(checkpoint)
    if checkpoint and state and state["stage"] != NAME:
        load_weights(checkpoint, var.guidance, GUIDED)
        return model
    strengths = guidance_by_position(teacher.config, stage.cfg, model.device)
    weights = scale_weights(teacher.config.tokenizer.patch_nums, model.device)
    with (
        training(model, ("guidance.",)) as parameters,
        progress.task("distilling guidance", stage.steps) as task,
    ):
        optimiser = Optimiser(
            parameters, lr=stage.lr, steps=stage.steps, precision=settings.precision, device=model.device
        )
        done = 0
        if checkpoint and state:
            load_checkpoint(checkpoint, var, optimiser)
            done, history[:] = state["step"], state["history"]
            task.advance(done)
        for step in range(done, stage.steps):
            batch = batch_of(samples, settings.batch, seed + step)
            with optimiser.autocast:
                target = taught(teacher, batch, strengths)
                logits = var(*single_rows(model, batch.labels, batch.tokens), var.teacher_forced(-torch.inf))
            loss = kl_divergence(logits, target, weights)
            norm = optimiser.step(loss, step)
            kl = float(loss.detach())
            history.append({"stage": NAME, "step": step, "loss": kl, "kl": kl, "grad_norm": float(norm)})
            task.advance(note=f"kl {kl:.4f}")
            if checkpoint and (step + 1) % CHECKPOINT_EVERY == 0:
                state = {"stage": NAME, "step": step + 1, "history": history, "seed": seed}
                state["settings"] = settings.model_dump(mode="json")
                save_checkpoint(checkpoint, {"model": var}, optimiser, state)
    return model
