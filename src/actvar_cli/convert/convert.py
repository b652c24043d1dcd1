"""From a dense model to one with experts and routers that works at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actvar_cli.convert.calibration import TeacherSamples, calibrate_dials, draw_samples, record_blocks
from actvar_cli.convert.grouping import group_neurons
from actvar_cli.convert.regression import fit_perceptron, relative_energy
from actvar_cli.convert.settings import ConvertSettings
from actvar_cli.errors import ActvarError, InputError
from actvar_cli.model.block import Block, Record
from actvar_cli.model.config import ExpertsConfig
from actvar_cli.model.experts import ExpertFFN
from actvar_cli.model.sampling import ActVAR, paired_rows
from actvar_cli.model.var import VAR
from actvar_cli.progress import Progress

TOLERANCE = 1e-4
"""Largest allowed difference of a logit with all experts on."""

BUDGETS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
"""Budgets that get a threshold, as far as experts alone reach them."""

DEFAULT_BUDGET = 0.8
"""Where a model that was only converted works, unless told otherwise."""


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
    if hidden % settings.experts:
        fitting = [e for e in (2, 4, 6, 8, 12, 16, 24, 32, 64) if hidden % e == 0]
        raise InputError(
            f"{settings.experts} experts do not divide the FFN's {hidden} neurons; "
            f"possible are {', '.join(map(str, fitting))}"
        )


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
def calibrate_router(block: Block, record: Record, generator: torch.Generator) -> float:
    """Set the experts' means and fit the router to what each expert's absence would change; returns the fit (R^2).

    The target is the log energy of the expert's deviation from its mean, after g2, relative to the block's output.
    """
    ffn = block.ffn
    assert isinstance(ffn, ExpertFFN)
    outputs = torch.cat([ffn.expert_outputs(h) for h in record.h_ffn.split(2048)])
    ffn.expert_mean.copy_(outputs.mean(0))
    deviation = (outputs - ffn.expert_mean) * record.gain.unsqueeze(1)
    targets = relative_energy(deviation, record.out.unsqueeze(1))
    return fit_perceptron(block.router, record.h_ffn, targets, generator)


def scale_offsets(patch_nums: Sequence[int]) -> tuple[float, ...]:
    """What is added to the scores at each scale: the log of how much coarser it is than the last one.

    An early scale has few tokens and decides much. That half the log of the ratio of token numbers is a good measure
    was found by trial (docs/method.md).
    """
    return tuple(math.log(patch_nums[-1] / pn) for pn in patch_nums)


@torch.no_grad()
def largest_difference(teacher: ActVAR, student: ActVAR, samples: TeacherSamples, images: int = 8) -> float:
    """Largest absolute logit difference, teacher-forced on both rows, with every expert on and routed."""
    rows, var_input = paired_rows(teacher, samples.labels[:images], samples.tokens[:images])
    everything = student.transformer.teacher_forced(threshold=-torch.inf)
    difference = teacher.transformer(rows, var_input) - student.transformer(rows, var_input, everything)
    return float(difference.abs().max())


def convert(
    teacher: ActVAR, settings: ConvertSettings, *, seed: int = 0, progress: Progress | None = None
) -> Converted:
    """Split every FFN of ``teacher`` into experts and fit routers; ``teacher`` stays as it is.

    Raises InputError where the settings do not suit the model, ActvarError where the result is not the same function.
    """
    check(teacher, settings)
    progress = progress or Progress()
    generator = torch.Generator().manual_seed(seed)
    arch = teacher.config.transformer
    experts = ExpertsConfig(
        num_experts=settings.experts,
        router_dim=max(8, arch.embed_dim // 8),
        method=settings.method,
        scale_offsets=scale_offsets(teacher.config.tokenizer.patch_nums),
    )
    config = teacher.config.model_copy(update={"experts": experts, "default_budget": DEFAULT_BUDGET})
    transformer = VAR(config).to(teacher.device)
    missing, unexpected = transformer.load_state_dict(teacher.transformer.state_dict(), strict=False)
    own = (".router.", ".expert_mean", ".permutation")
    if unexpected or not all(any(part in key for part in own) for key in missing):
        raise ActvarError(f"unexpected weights: {[*unexpected, *missing][:3]}")
    student = ActVAR(config, transformer, teacher.tokenizer).eval()
    blocks = transformer.stack
    with progress.task(f"splitting FFNs ({settings.method})", arch.depth) as task:
        for block in blocks:
            weight = block.ffn.fc1.weight.detach().cpu()
            permute_experts(block, group_neurons(weight, settings.experts, settings.method, generator))
            task.advance()
    samples = draw_samples(teacher, settings.images, seed=seed, progress=progress)
    records = record_blocks(
        teacher,
        samples,
        positions=torch.arange(config.tokenizer.num_tokens),
        per_image=max(1, 8192 // settings.images),
        threshold=None,
        generator=generator,
        progress=progress,
        label="recording activations",
    )
    fits: list[float] = []
    with progress.task("fitting routers", arch.depth) as task:
        for block, record in zip(blocks, records, strict=True):
            fits.append(calibrate_router(block, record, generator))
            task.advance(note=f"R2 {fits[-1]:.2f}")
    difference = largest_difference(teacher, student, samples)
    if difference > TOLERANCE:
        raise ActvarError(f"with all experts on, a logit differs by {difference:.2e}, more than {TOLERANCE:g}")
    dials = calibrate_dials(student, BUDGETS, span=(-25.0, 5.0), seed=seed, progress=progress)
    student.config = transformer.config = config.model_copy(update={"dials": dials})
    if any(d.budget == DEFAULT_BUDGET for d in dials):
        student.set_budget(DEFAULT_BUDGET)
    return Converted(student, difference, tuple(fits))
