"""Gives a student its token gates: reconstruction in closed form, gates regressed on its error, one threshold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from actvar_cli.convert.calibration import TeacherSamples, paired_rows, record_blocks
from actvar_cli.convert.regression import fit_perceptron, fit_reconstruction, relative_energy
from actvar_cli.distill.cost import CostModel
from actvar_cli.distill.settings import TokensStage
from actvar_cli.model.config import TokenGateConfig
from actvar_cli.model.sampling import ActVAR
from actvar_cli.model.var import VAR
from actvar_cli.progress import Progress


@dataclass(frozen=True)
class GateFit:
    """Per block: share of the update's energy that the reconstruction explains, and of tokens that are kept."""

    explained: tuple[float, ...]
    kept: tuple[float, ...]


def add_token_gates(student: ActVAR, stage: TokensStage) -> ActVAR:
    """A copy of ``student`` with untrained token gates and reconstructions in every block."""
    last = len(student.config.tokenizer.patch_nums)
    dim = student.config.transformer.embed_dim
    gate = TokenGateConfig(
        scales=tuple(range(max(1, last - stage.scales), last)),
        gate_dim=max(8, dim // 16),
        rank=min(stage.rank, dim),
    )
    config = student.config.model_copy(update={"token_gate": gate})
    transformer = VAR(config).to(student.device)
    transformer.load_state_dict(student.transformer.state_dict(), strict=False)
    model = ActVAR(config, transformer, student.tokenizer).eval()
    model.threshold = student.threshold
    return model


@torch.no_grad()
def fit_token_gates(
    student: ActVAR,
    samples: TeacherSamples,
    *,
    budget: float,
    threshold: float,
    generator: torch.Generator,
    progress: Progress,
) -> GateFit:
    """Fit reconstruction and gate of every block on the student's own activations, and cut the gates at ``threshold``.

    One shift for all blocks makes the model cost ``budget``: the tokens whose update is reconstructed best, relative to
    the residual stream, are skipped. Where the model costs less already, no token is.
    """
    positions = student.transformer.gated_positions().nonzero().squeeze(1).cpu()
    config = student.transformer.config
    # Without token gates for now: what is recorded is what each block would do to every token.
    for block in student.transformer.stack:
        block.gated_scales = ()
    records = record_blocks(
        student,
        samples,
        positions=positions,
        per_image=max(1, 8192 // len(samples)),
        threshold=threshold,
        generator=generator,
        progress=progress,
        label="recording updates",
    )
    assert config.token_gate is not None
    explained: list[float] = []
    scores: list[Tensor] = []
    blocks = student.transformer.stack
    with progress.task("fitting token gates", len(blocks)) as task:
        for block, record in zip(blocks, records, strict=True):
            block.gated_scales = config.token_gate.scales
            explained.append(fit_reconstruction(block.reconstruction, record.h, record.update))
            error = relative_energy(block.reconstruction(record.h) - record.update, record.out)
            fit_perceptron(block.token_gate, record.h, error, generator)
            scores.append(block.token_gate(record.h))
            task.advance(note=f"explains {explained[-1]:.2f}")
    cut = cheapest_cut(student, samples, torch.cat(scores), budget=budget, threshold=threshold)
    for block in blocks:
        block.token_gate.fc2.bias.add_(threshold - cut)
    return GateFit(tuple(explained), tuple(float((s > cut).float().mean()) for s in scores))


@torch.no_grad()
def cheapest_cut(
    student: ActVAR, samples: TeacherSamples, scores: Tensor, *, budget: float, threshold: float, images: int = 16
) -> float:
    """The gate score below which tokens are skipped so that a teacher-forced pass costs ``budget``, by halving."""
    cost_model = CostModel(student.transformer.config, student.device)
    rows, var_input = paired_rows(student, samples.labels[:images], samples.tokens[:images])
    biases = [block.token_gate.fc2.bias for block in student.transformer.stack]
    before = [bias.clone() for bias in biases]
    low, high = 0.0, 0.98
    for _ in range(7):
        share = (low + high) / 2
        cut = scores.quantile(share)
        for bias, old in zip(biases, before, strict=True):
            bias.copy_(old + threshold - cut)
        context = student.transformer.teacher_forced(threshold)
        student.transformer(rows, var_input, context)
        low, high = (share, high) if cost_model(context.decisions) > budget else (low, share)
    for bias, old in zip(biases, before, strict=True):
        bias.copy_(old)
    return float(scores.quantile(high))
