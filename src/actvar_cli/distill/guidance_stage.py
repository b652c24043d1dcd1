"""Teaches the row with a class what guidance makes of both rows, so that the other need not be computed.

Only embeddings learn: the model without them stays what it was. Source: guidance distillation, arXiv 2210.03142; that
embeddings suffice, and that they take part in proportion to the strength of guidance, is ours (docs/method.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from actvar_cli.convert.recording import TeacherSamples
from actvar_cli.distill.checkpoint import load_checkpoint, load_weights, read_state, save_checkpoint
from actvar_cli.distill.losses import kl_divergence, scale_weights
from actvar_cli.distill.schedule import learning_rate, mixed_precision
from actvar_cli.distill.settings import DistillSettings
from actvar_cli.model.config import GuidanceConfig
from actvar_cli.model.extend import extended
from actvar_cli.model.guidance import guidance_by_position, guide
from actvar_cli.model.sampling import ActVAR, paired_rows, single_rows
from actvar_cli.progress import Progress

NAME = "guidance"
"""What the stage is called in history and checkpoint."""

CHECKPOINT_EVERY = 50
"""Optimiser steps between two checkpoints."""


def with_guidance(model: ActVAR, guidance: GuidanceConfig) -> ActVAR:
    """``model`` with embeddings for guidance that have no effect yet; its other weights are shared."""
    return extended(model, model.config.model_copy(update={"guidance": guidance}))


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
        load_weights(checkpoint, var.guidance, "guidance.")
        return model
    accelerator = Accelerator(
        mixed_precision=mixed_precision(settings.precision, model.device), cpu=model.device.type == "cpu"
    )
    strengths = guidance_by_position(teacher.config, stage.cfg).to(model.device)
    weights = scale_weights(teacher.config.tokenizer.patch_nums).to(model.device)
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    parameters = dict(var.guidance.named_parameters(prefix="guidance"))
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    names = list(parameters)
    optimizer = torch.optim.AdamW(parameters.values(), lr=stage.lr, betas=(0.9, 0.98), weight_decay=0.0)
    with progress.task("distilling guidance", stage.steps) as task:
        done = 0
        if checkpoint and state:
            load_checkpoint(checkpoint, var, optimizer, names)
            done, history[:] = state["step"], state["history"]
            task.advance(done)
        for step in range(done, stage.steps):
            generator.manual_seed(seed + step)
            index = torch.randint(len(samples), (settings.batch,), generator=generator).to(model.device)
            labels, tokens = samples.labels[index], samples.tokens[index]
            with accelerator.autocast():
                with torch.no_grad():
                    target = guide(teacher.transformer(*paired_rows(teacher, labels, tokens)), strengths)
                logits = var(*single_rows(model, labels, tokens), var.teacher_forced(-torch.inf))
            loss = kl_divergence(logits, target, weights)
            optimizer.param_groups[0]["lr"] = stage.lr * learning_rate(step, stage.steps)
            optimizer.zero_grad(set_to_none=True)
            accelerator.backward(loss)
            norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            if torch.isfinite(norm):
                optimizer.step()
            kl = float(loss.detach())
            history.append({"stage": NAME, "step": step, "loss": kl, "kl": kl, "grad_norm": float(norm)})
            task.advance(note=f"kl {kl:.4f}")
            if checkpoint and (step + 1) % CHECKPOINT_EVERY == 0:
                now = {"stage": NAME, "step": step + 1, "history": history, "seed": seed}
                save_checkpoint(checkpoint, var, optimizer, names, now | {"settings": settings.model_dump(mode="json")})
    model.requires_grad_(False)
    return model
