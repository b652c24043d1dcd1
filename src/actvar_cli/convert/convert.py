"""From a dense model to one with experts and routers that works at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actvar_cli.convert.calibration import SURE_IMAGES, calibrate_dials, predicted_cost
from actvar_cli.convert.grouping import group_neurons
from actvar_cli.convert.recording import FFNRecord, Recorder, TeacherSamples, draw_samples, quick_calibration
from actvar_cli.convert.regression import fit_perceptron, log_ratio
from actvar_cli.convert.sensitivity import taylor_scores
from actvar_cli.convert.settings import TOKENS, ConvertSettings, affordable_images
from actvar_cli.errors import ActvarError, InputError
from actvar_cli.model.block import Block
from actvar_cli.model.config import BY_TOKEN, ExpertsConfig
from actvar_cli.model.device import return_memory
from actvar_cli.model.experts import ExpertFFN
from actvar_cli.model.rebuild import rebuilt
from actvar_cli.model.router import RelativeRouter, Router, StaticRouter
from actvar_cli.model.sampling import ActVAR, paired_rows
from actvar_cli.progress import Progress

TOLERANCE = 1e-4
"""Largest allowed difference of a logit with all experts on."""

BUDGETS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
"""Budgets that get a threshold, as far as experts alone reach them."""

DEFAULT_BUDGET = 0.8
"""Where a model that was only converted works, unless told otherwise."""

CHUNK = 1024
"""Tokens whose outputs are held at once."""


@dataclass(frozen=True)
class Converted:
    """The model, the largest logit difference with all experts on, and how well each block's router fits (R^2)."""

    model: ActVAR
    max_logit_difference: float
    router_fit: tuple[float, ...]


def check(teacher: ActVAR, settings: ConvertSettings) -> None:
    """Raise InputError where ``settings`` do not suit ``teacher``."""
    hidden = teacher.config.transformer.hidden_dim
    if not teacher.config.is_dense:
        raise InputError(f"{teacher.config.name} has experts already; convert the original model")
    counts, depth = settings.experts, teacher.config.transformer.depth
    if isinstance(counts, int):
        counts = (counts,) * depth
    if len(counts) != depth:
        raise InputError(f"{len(counts)} numbers of experts were given, {teacher.config.name} has {depth} blocks")
    for count in counts:
        if hidden % count:
            fitting = ", ".join(str(e) for e in (2, 4, 6, 8, 12, 16, 24, 32, 64) if hidden % e == 0)
            raise InputError(f"{count} experts do not divide the FFN's {hidden} neurons; possible are {fitting}")


def permute_experts(block: Block, permutation: Tensor) -> None:
    """Line the FFN's neurons up expert by expert; the function of the FFN does not change."""
    ffn = block.ffn
    assert isinstance(ffn, ExpertFFN)
    with torch.no_grad():
        ffn.fc1.weight.copy_(ffn.fc1.weight[permutation])
        ffn.fc1.bias.copy_(ffn.fc1.bias[permutation])
        ffn.fc2.weight.copy_(ffn.fc2.weight[:, permutation])
        ffn.permutation.copy_(permutation)


@torch.no_grad()
def calibrate_router(block: Block, record: FFNRecord, unit: int, generator: torch.Generator) -> tuple[float, Tensor]:
    """Set the experts' means and fit the router to what each expert's absence would change.

    The target is the log energy of the expert's deviation from its mean, after g2, relative to the block's output, for
    as much work as one of ``unit`` experts of the FFN would take: where experts are larger they must be worth more.
    Returns the fit (R^2; 0 where the router does not look at the token) and the scores (n, E).
    """
    ffn = block.ffn
    assert isinstance(ffn, ExpertFFN)
    h = record.h.to(ffn.expert_mean.dtype)
    parts = [slice(i, i + CHUNK) for i in range(0, len(h), CHUNK)]
    energies = h.new_empty(len(h), ffn.num_experts)
    for expert, mean in enumerate(ffn.expert_mean):
        hidden = ffn.hidden_of(expert, h)
        with torch.autocast(h.device.type, enabled=False):
            # The second layer is linear: the mean output follows from the mean of what it reads.
            mean.copy_(ffn.output_of(expert, hidden.mean(0, dtype=h.dtype)))
        for part in parts:
            deviation = ffn.output_of(expert, hidden[part], -mean) * record.gain[part]
            energies[part, expert] = deviation.square().sum(1)
    targets = log_ratio(energies, record.energy.unsqueeze(1)) - math.log(unit / ffn.num_experts)
    if isinstance(block.router, RelativeRouter):
        targets = targets - targets.amax(1, keepdim=True)
    if isinstance(block.router, Router):
        return fit_perceptron(block.router, h, targets, generator), block.router(h)
    if isinstance(block.router, StaticRouter):
        block.router.scores.copy_(targets.mean(0))
    return 0.0, block.router(h).detach()


def scale_offsets(patch_nums: Sequence[int]) -> tuple[float, ...]:
    """What is added to the scores at each scale: the log of how much coarser it is than the last one.

    An early scale has few tokens and decides much. That half the log of the ratio of token numbers is a good measure
    was found by trial (docs/method.md).
    """
    return tuple(math.log(patch_nums[-1] / pn) for pn in patch_nums)


def router_dim(dim: int) -> int:
    """Neurons of a router for tokens of width ``dim``.

    From a width of 128 on it does less than a hundredth of the work of an FFN of up to 32 experts.
    """
    return max(8, dim // 16)


def with_experts(teacher: ActVAR, experts: ExpertsConfig) -> ActVAR:
    """A model with the weights of ``teacher``, which it shares, and room for what ``experts`` needs."""
    config = teacher.config.model_copy(update={"experts": experts, "default_budget": DEFAULT_BUDGET})
    return rebuilt(teacher, config)


@torch.no_grad()
def reference_logits(model: ActVAR, samples: TeacherSamples, images: int) -> Tensor:
    """Logits (2 images, L, vocab), teacher-forced on both rows, with every expert on and routed."""
    rows, var_input = paired_rows(model, samples.labels[:images], samples.tokens[:images])
    logits: Tensor = model.transformer(rows, var_input, model.transformer.teacher_forced(threshold=-torch.inf))
    return logits


def convert(
    teacher: ActVAR, settings: ConvertSettings, *, seed: int = 0, progress: Progress | None = None
) -> Converted:
    """Split every FFN of ``teacher`` into experts and fit routers.

    The result shares its weights with ``teacher``, so that a model of many GB is in memory once: the neurons of the
    teacher's FFNs change places, what they compute together stays the same.

    Raises InputError where the settings do not suit the model, ActvarError where the result is not the same function.
    """
    check(teacher, settings)
    if teacher.shares_weights:
        raise InputError(
            f"{teacher.config.name} was converted before, and what came of it shares its weights: load it anew"
        )
    progress = progress or Progress()
    generator = torch.Generator().manual_seed(seed)
    arch = teacher.config.transformer
    images = settings.images_for(teacher.config)
    recorder = Recorder(teacher, min(max(1, TOKENS // images), teacher.config.tokenizer.num_tokens), generator)
    with quick_calibration(teacher):
        samples = draw_samples(teacher, images, seed=seed, progress=progress, recorder=recorder)
    checked = max(1, min(8, images // 16))
    before = reference_logits(teacher, samples, checked)
    student = with_experts(
        teacher,
        ExpertsConfig(
            num_experts=settings.experts,
            router_dim=router_dim(arch.embed_dim),
            method=settings.method,
            router=settings.router,
            # What knows nothing of a token does not know its scale either.
            scale_offsets=scale_offsets(teacher.config.tokenizer.patch_nums) if settings.router in BY_TOKEN else (),
        ),
    )
    teacher.shares_weights = True
    # Before the neurons change places in the teacher, whose weights these are.
    taylor = settings.method == "taylor"
    sensitivities = taylor_scores(teacher, samples, progress) if taylor else [None] * arch.depth
    fits: list[float] = []
    scores: list[Tensor] = []
    with progress.task(f"splitting FFNs ({settings.method}), fitting routers", arch.depth) as task:
        for block, record, sensitivity in zip(
            student.transformer.stack, recorder.records(), sensitivities, strict=True
        ):
            assert isinstance(block.ffn, ExpertFFN)
            grouped = group_neurons(block.ffn, record, block.ffn.num_experts, settings.method, generator, sensitivity)
            permute_experts(block, grouped)
            with quick_calibration(teacher):
                fit, scored = calibrate_router(block, record, student.config.finest, generator)
            fits.append(fit)
            scores.append(scored.float())
            return_memory()
            task.advance(note=f"R2 {fit:.2f}")
    difference = float((before - reference_logits(student, samples, checked)).abs().max())
    if not difference <= TOLERANCE:
        raise ActvarError(f"with all experts on, a logit differs by {difference:.2e}, more than {TOLERANCE:g}")
    del before
    return_memory()
    few = affordable_images(student.config, SURE_IMAGES)
    dials = calibrate_dials(
        student,
        BUDGETS,
        span=(-25.0, 5.0),
        seed=seed,
        progress=progress,
        guess=predicted_cost(student.config, scores, recorder.scales),
        images=few if few == SURE_IMAGES else few // 4,
    )
    student.configure(dials=dials)
    if any(d.budget == DEFAULT_BUDGET for d in dials):
        student.set_budget(DEFAULT_BUDGET)
    return_memory()
    return Converted(student, difference, tuple(fits))
