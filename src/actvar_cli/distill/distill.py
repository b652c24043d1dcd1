"""Two-stage distillation: experts and routers first, then token gates with the experts still learning.

Source: ActVAR (arXiv 2511.12893) for the two stages; losses and schedules are ours (docs/method.md).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from actvar_cli.convert.calibration import calibrate_dials, dials_of_both_rows, meets
from actvar_cli.convert.convert import BUDGETS
from actvar_cli.convert.recording import TeacherSamples
from actvar_cli.distill.addition import Kept
from actvar_cli.distill.checkpoint import load_checkpoint, read_state, save_checkpoint
from actvar_cli.distill.context_stage import learn_context, with_context
from actvar_cli.distill.cost import CostModel
from actvar_cli.distill.data import training_samples
from actvar_cli.distill.guidance_stage import GUIDED, learn_guidance, with_guidance
from actvar_cli.distill.losses import cost_excess, hidden_error, kl_divergence, scale_weights
from actvar_cli.distill.optimiser import Optimiser
from actvar_cli.distill.refit import refit
from actvar_cli.distill.settings import DistillSettings
from actvar_cli.distill.thresholds import expert_density, score_spread, threshold_for
from actvar_cli.distill.token_stage import (
    Trial,
    add_token_gates,
    drop_idle_gates,
    fit_token_gates,
    gate_config,
    weigh_gates,
    without_token_gates,
)
from actvar_cli.distill.training import (
    Course,
    Sequences,
    budget_weight,
    place_delta,
    taught,
    training,
    turns,
    with_delta,
)
from actvar_cli.errors import ActvarError, InputError
from actvar_cli.model.config import EVERYTHING, GuidanceConfig
from actvar_cli.model.device import keep_memory
from actvar_cli.model.guidance import guidance_by_position, guide
from actvar_cli.model.sampling import ActVAR, rows_of
from actvar_cli.progress import Progress

LOW_BUDGETS = (0.25, 0.3, 0.35, 0.4, 0.45, 0.49, 0.5, 0.55)
"""Budgets that get a threshold besides those trained for and those of a conversion, as far as they can be reached.

Between one at which something is left out and one at which nothing is, the lower one holds: hence 0.49, just below a
half, which one row costs.
"""

LEARNS = {
    "experts": (".ffn.", ".router.", "reconstruction."),
    "blocks": ("blocks.", "guidance."),
    "delta": ("blocks.", "guidance.", "delta."),
}
"""Parts whose parameters learn, by `DistillSettings.learns`; gates get no gradient and stay fixed in any case."""

CHECKPOINT_EVERY = 20
"""Optimiser steps between two checkpoints."""

WEIGHED = 32
"""Samples on which token gates are weighed against experts."""

SOFTNESS = 0.3
"""Temperature of the routers' gradient, as a share of the spread of their scores."""


@dataclass(frozen=True)
class Distilled:
    """The student, and one entry per optimiser step: stage, step, loss and its terms, cost, budget."""

    model: ActVAR
    history: list[dict[str, Any]]


def check(teacher: ActVAR, student: ActVAR, settings: DistillSettings) -> None:
    """Raise InputError where teacher, student and settings do not go together."""
    if not teacher.config.is_dense:
        raise InputError(f"the teacher {teacher.config.name} is not an original model")
    if student.config.experts is None:
        raise InputError(f"the student {student.config.name} has no experts: convert it first")
    if (teacher.config.transformer, teacher.config.tokenizer) != (student.config.transformer, student.config.tokenizer):
        raise InputError("teacher and student have different architectures")
    learned = len(student.config.delta.thresholds) if student.config.delta else 0
    if learned and (settings.learns != "delta" or learned != len(settings.budgets)):
        raise InputError(
            f"the student {student.config.name} has a delta for {learned} budgets: "
            "distil it with learns: delta and as many budgets, or convert the original again"
        )
    # Without a router, experts alone save nothing; with token gates there will be budgets.
    if not student.config.dials and student.config.experts.router != "none":
        raise InputError(f"the student {student.config.name} has no calibrated budgets: convert it again")


class Aim(NamedTuple):
    """A budget, and the threshold at which the student is taught to keep it."""

    budget: float
    threshold: float


def share_of_lr(settings: DistillSettings, name: str) -> float:
    """The learning rate of the parameter ``name``, by `DistillSettings.lr`."""
    if ".router." in name:
        return settings.router_lr
    whole = (*LEARNS["experts"], "delta.factors")
    return 1.0 if any(part in name for part in whole) else settings.attention_lr


def guidance_of(student: ActVAR) -> Tensor:
    """The guidance at every position that the student learned, or that is usual."""
    return guidance_by_position(student.config, student.config.usual_cfg, student.device)


@torch.no_grad()
def trials(student: ActVAR, samples: TeacherSamples, target: Tensor, budgets: Sequence[float]) -> list[Trial]:
    """How far the student diverges at each of ``budgets`` on ``samples``, of which the teacher says ``target``."""
    weights, guidance = scale_weights(student.config.tokenizer.patch_nums, student.device), guidance_of(student)
    found = []
    for budget in budgets:
        threshold = threshold_for(student, samples, budget)
        context = student.transformer.teacher_forced(threshold)
        logits = student.transformer(*rows_of(student, samples.labels, samples.tokens), context)
        if not student.config.guidance:
            logits = guide(logits, guidance)
        found.append(Trial(threshold, float(kl_divergence(logits, target, weights).log())))
    return found


def whole_budgets(cost_model: CostModel, budgets: Sequence[float]) -> set[float]:
    """Those of ``budgets`` at which nothing is left out in the end: what one row that has learned guidance costs."""
    if cost_model.config.guidance is None:
        return set()
    whole = cost_model.whole()
    return {budget for budget in budgets if meets(whole, budget)}


def resumable(course: Course, student: ActVAR, guided: ActVAR, aims: Sequence[Aim]) -> Kept:
    """What a checkpoint of a stage after the guidance's has to hold besides the student and how far the stage got."""
    gated = student.config.token_gate.blocks if student.config.token_gate else ()
    state = course.identity | {"aims": aims, "gated_blocks": gated}
    return Kept(state, {GUIDED: guided.transformer.guidance} if guided.config.guidance else {})


def run_stage(
    course: Course,
    name: str,
    guided: ActVAR,
    student: ActVAR,
    *,
    steps: range,
    aims: Sequence[Aim],
    before: Optimiser | None = None,
) -> Optimiser:
    """Train ``student`` in place, at ``aims`` in the order of `turns`; excess is punished.

    ``steps`` are this stage's of all that follow one schedule, up to `Stages.learning`; ``before`` is what the stage
    before returned.
    ``guided`` is the teacher with guidance learned, where the student has learned it too; else the teacher.
    """
    samples, settings, history, checkpoint = course.samples, course.settings, course.history, course.checkpoint
    cost_model = CostModel(student.config, student.device)
    weights, guidance = scale_weights(student.config.tokenizer.patch_nums, student.device), guidance_of(student)
    learned = student.config.guidance
    most = math.inf
    if student.config.delta:
        place_delta(student, [aim.threshold for aim in aims])
        # Weights that budgets share are taught at each of them alike, so that none is forgotten.
        most = cost_model.most()
    # Such a budget is trained as it will be used in the end, whatever a stage before the last one aims at.
    nothing_out = whole_budgets(cost_model, settings.budgets)
    whole = [budget in nothing_out for budget in settings.budgets]
    order = turns([aim.budget for aim in aims], most, len(steps))
    with (
        training(student, LEARNS[settings.learns]) as parameters,
        course.progress.task(f"distilling {name}", len(steps)) as task,
    ):
        optimiser = Optimiser(
            parameters,
            lr=settings.lr,
            share=partial(share_of_lr, settings),
            steps=settings.stages.learning,
            precision=settings.precision,
            device=student.device,
            kind=settings.optimiser,
        )
        if before:
            optimiser.adopt(before.moments())
        done, temperature = 0, SOFTNESS * score_spread(student, samples, aims[0].threshold)
        state = read_state(checkpoint)
        if checkpoint and state and state["stage"] == name:
            load_checkpoint(checkpoint, student.transformer, optimiser)
            done, history[:], temperature = state["step"], state["history"], state["temperature"]
            task.advance(done)
        used = [EVERYTHING if is_whole else aim.threshold for aim, is_whole in zip(aims, whole, strict=True)]
        sequences = Sequences(samples, student, settings.own, settings.batch, used)
        for number in steps[done:]:
            step = number - steps.start
            if step % CHECKPOINT_EVERY == 0:
                # In step with the checkpoints: what goes on from one draws the same.
                sequences.renew(course.seed + number // CHECKPOINT_EVERY)
            parts = sequences.batch(course.seed + number)
            labels, tokens = torch.cat([part.labels for part in parts]), torch.cat([part.tokens for part in parts])
            turn = order[step % len(order)]
            budget, threshold = aims[turn]
            context = student.transformer.teacher_forced(threshold, temperature=temperature, whole=whole[turn])
            teacher_hidden: list[Tensor] = []
            student_hidden: list[Tensor] = []
            with optimiser.autocast:
                if learned:
                    target = torch.cat([taught(course.teacher, part, guidance) for part in parts])
                    with torch.no_grad():
                        # What one row should look like inside, the teacher's two do not tell.
                        every = guided.transformer.teacher_forced(-torch.inf)
                        guided.transformer(*rows_of(guided, labels, tokens), every, teacher_hidden)
                else:
                    target = taught(course.teacher, TeacherSamples(labels, tokens), guidance, teacher_hidden)
                logits = student.transformer(*rows_of(student, labels, tokens), context, student_hidden)
            cost = cost_model(context.decisions)
            if not learned:
                logits = guide(logits, guidance)
            # In this direction: the other one teaches a student with less capacity to be less sure than its teacher.
            kl = kl_divergence(logits, target, weights)
            hidden = hidden_error(teacher_hidden, student_hidden, weights)
            excess = cost_excess(cost, budget)
            loss = kl + settings.weights.hidden * hidden + settings.weights.cost * excess
            norm = optimiser.step(budget_weight(budget, history, name, len(aims)) * loss, number)
            entry = {"loss": loss, "kl": kl, "hidden": hidden, "cost": cost, "grad_norm": norm}
            history.append(
                {"stage": name, "step": step, "budget": budget, **{k: float(v.detach()) for k, v in entry.items()}}
            )
            task.advance(note=f"kl {history[-1]['kl']:.3f} cost {history[-1]['cost']:.3f}")
            if checkpoint and ((step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == len(steps)):
                state = {"stage": name, "step": step + 1, "history": history, "temperature": temperature}
                kept = resumable(course, student, guided, aims)
                save_checkpoint(checkpoint, {"model": student.transformer, **kept.parts}, optimiser, kept.state | state)
    return optimiser


def distill(
    teacher: ActVAR,
    student: ActVAR,
    settings: DistillSettings,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> Distilled:
    """Teach ``student`` (a converted model, not changed) to imitate ``teacher`` at ``settings.budget``.

    With ``checkpoint``, the training is saved there now and then, and goes on from there when called again with the
    same arguments; the file stays, to be removed by whoever has saved the student. Raises InputError where the models
    do not go together, ActvarError where the budget was not reached.
    """
    check(teacher, student, settings)
    keep_memory(teacher.device)
    progress = progress or Progress()
    stages = settings.stages
    student = copy.deepcopy(student).to(teacher.device)
    if settings.learns == "delta" and not student.config.delta:
        student = with_delta(student, len(settings.budgets))
    if stages.guidance.steps:
        student = with_guidance(student, GuidanceConfig(cfg=stages.guidance.cfg))
    begins = student.config.guidance is not None and student.config.delta is not None and student.config.beginnings
    if stages.context.steps and not begins:
        raise InputError(
            "stages.context: a student begins with both rows only if it learns guidance (stages.guidance.steps), keeps "
            "the original's weights (learns: delta) and has three scales or more"
        )
    if stages.tokens.steps:
        # Those of an earlier distillation make way for those that come, which may be of another shape.
        student = without_token_gates(student)
        # Refuses gates that would save nothing, before experts are trained for them.
        gate_config(student.config, stages.tokens)
    cost = CostModel(student.config, student.device)
    most, least, budgets = cost.most(), cost.least_by_experts(), settings.budgets
    if max(budgets) >= most:
        raise InputError(f"a budget of {max(budgets):g} saves nothing: with all experts on, the cost is {most:.3f}")
    whole = whole_budgets(cost, budgets)
    # Where nothing will be left out, it is no matter what leaving out would do.
    saving = [budget for budget in budgets if budget not in whole]
    lowest = min(saving, default=math.inf)
    if lowest <= least and not (stages.tokens.steps or student.config.token_gate):
        raise InputError(
            f"a budget of {lowest:g} cannot be met by experts alone: they come to {least:.3f} at the least; "
            "add token gates (stages.tokens.steps)"
        )
    learned = student.config.guidance
    samples = training_samples(teacher, settings, learned, seed, progress)
    course = Course(teacher, samples, settings, seed=seed, checkpoint=checkpoint, progress=progress)
    state = read_state(checkpoint)
    if checkpoint and state and not course.identity.items() <= state.items():
        checkpoint.unlink()
        state = None
    guided = teacher
    if stages.guidance.steps:
        guided = learn_guidance(course)
        student.transformer.guidance.load_state_dict(guided.transformer.guidance.state_dict())
        state = state if state and state["stage"] != "guidance" else None
    elif student.config.guidance:
        # Learned in an earlier distillation.
        guided = with_guidance(teacher, student.config.guidance)
        guided.transformer.guidance.load_state_dict(student.transformer.guidance.state_dict())
    # The experts alone stop at a higher cost when token gates are to come; then one threshold weighs both.
    share = stages.experts.share if stages.tokens.steps else 1.0
    first = [most - share * (most - budget) for budget in budgets]

    def stage(name: str, steps: range, before: Optimiser | None = None) -> Optimiser:
        return run_stage(course, name, guided, student, steps=steps, aims=aims, before=before)

    def aimed(budgets: Sequence[float]) -> list[Aim]:
        return [Aim(budget, threshold_for(student, samples, budget)) for budget in budgets]

    optimiser: Optimiser | None = None
    reached = state["stage"] if state else None
    if state and reached in ("tokens", "context"):
        aims = [Aim(*aim) for aim in state["aims"]]
        if student.config.delta:
            place_delta(student, [aim.threshold for aim in aims])
        if stages.tokens.steps:
            student = add_token_gates(student, stages.tokens, state["gated_blocks"])
    else:
        if state:
            aims = [Aim(*aim) for aim in state["aims"]]
        else:
            aims = aimed(first)
            if settings.learns == "experts":
                # Where all of every block learns, for longer, it is worth no more than a few steps.
                refit(guided, student, samples, thresholds=[aim.threshold for aim in aims], progress=progress)
                # The scores move with what the blocks see.
                aims = aimed(first)
        optimiser = stage("experts", range(stages.experts.steps))
        if stages.tokens.steps:
            density = expert_density(student, samples, aims[0].threshold)
            student = add_token_gates(student, stages.tokens)
            generator = torch.Generator().manual_seed(seed)
            fit_token_gates(
                student,
                samples,
                threshold=aims[0].threshold,
                density=density,
                generator=generator,
                progress=progress,
            )
            few = samples.some(WEIGHED)
            target = taught(teacher, few, guidance_of(student))
            weigh_gates(student, partial(trials, student, few, target, saving or budgets))
            # At the lowest budget gates skip most: what is idle there is idle everywhere.
            student = drop_idle_gates(student, samples, threshold_for(student, samples, min(budgets)))
            aims = aimed(budgets)
    if stages.tokens.steps and reached != "context":
        stage("tokens", range(stages.experts.steps, stages.learning), optimiser)
    if stages.context.steps:
        student = with_context(student)
        learn_context(course, student, resumable(course, student, guided, aims))
    thresholds = [aim.threshold for aim in aims]
    dials = calibrate_dials(
        student,
        sorted({*budgets, *(b for b in LOW_BUDGETS + BUDGETS if b > min(budgets))}),
        span=(min(thresholds) - 12, max(thresholds) + 4),
        seed=seed,
        progress=progress,
    )
    if missed := set(budgets) - {d.budget for d in dials}:
        met = ", ".join(f"{dial.budget:g}" for dial in dials) or "none"
        raise ActvarError(f"the student cannot be set to budget {min(missed):g}; budgets reached: {met}")
    if begins:
        # Without a delta, what all experts together say is no longer what the original said.
        dials += dials_of_both_rows(student, dials[-1].budget, seed=seed, progress=progress)
    student.configure(dials=dials, default_budget=settings.budget)
    student.set_budget(settings.budget)
    return Distilled(student.eval(), course.history)
