"""Gives a student its token gates: reconstruction in closed form, gates regressed on its error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from actvar_cli.convert.recording import TeacherSamples, decisions_at, record_blocks
from actvar_cli.convert.regression import fit_low_rank, fit_perceptron, fit_reconstruction, relative_energy
from actvar_cli.distill.settings import TokensStage
from actvar_cli.errors import InputError
from actvar_cli.model.attention import SelfAttention
from actvar_cli.model.block import Record
from actvar_cli.model.config import ModelConfig, TokenGateConfig
from actvar_cli.model.counters import attention_macs, ffn_macs, reconstruction_macs, router_macs
from actvar_cli.model.delta import using
from actvar_cli.model.places import InPlace
from actvar_cli.model.rebuild import rebuilt
from actvar_cli.model.sampling import ActVAR
from actvar_cli.model.token_gate import GridGate, Reconstruction, StaticGate, TokenGate, grid_step
from actvar_cli.progress import Progress

SHIFTS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
"""What is tried to be added to the scores of all gates; with the last, next to nothing is skipped."""

HANDICAP = 1.0
"""How much more than is best before a training: experts learn to say what others would have said, stand-ins less."""

LEAST_SAVING = 1e-3
"""What a skipped token counts as saving at the least, in smallest experts."""

RECORDED = 8192
"""Tokens that gates and reconstructions are fitted to, about."""

IDLE = 0.85
"""A gate that keeps more than this share of the tokens is not worth asking: around it, attention goes unevenly long."""


def add_token_gates(student: ActVAR, stage: TokensStage, blocks: Sequence[int] | None = None) -> ActVAR:
    """``student``, which has none, with untrained token gates and reconstructions in ``blocks`` (``None``: in all)."""
    gate = gate_config(student.config, stage)
    return _with_gates(student, gate if blocks is None else gate.model_copy(update={"blocks": tuple(blocks)}))


def gate_config(config: ModelConfig, stage: TokensStage) -> TokenGateConfig:
    """The token gates that ``stage`` asks for, in all blocks; InputError where a skipped token would save no work."""
    last, dim = len(config.tokenizer.patch_nums), config.transformer.embed_dim
    gate = TokenGateConfig(
        scales=tuple(range(max(1, last - stage.scales), last)),
        gate_dim=max(8, dim // 16),
        rank=min(stage.rank, dim),
        kv_rank=min(stage.kv_rank, dim),
        kind=stage.gate,
        skips=stage.skips,
        reconstruction=stage.reconstruction,
    )
    if saving(config.model_copy(update={"token_gate": gate}), density=1.0) <= 0:
        raise InputError(
            "stages.tokens: to rebuild a skipped token takes as much work as it saves: choose a lower rank than "
            f"{gate.rank}, or a lower kv_rank than {gate.kv_rank}"
        )
    return gate


def without_token_gates(student: ActVAR) -> ActVAR:
    """``student`` as it is where every block computes all tokens."""
    return _with_gates(student, None)


def _with_gates(student: ActVAR, gate: TokenGateConfig | None) -> ActVAR:
    """``student`` with the gates of ``gate``: those it has keep their weights, which are shared; others are 0."""
    # A gate in no block is none.
    config = student.config.model_copy(update={"token_gate": gate if gate and gate.blocks != () else None})
    return rebuilt(student, config)


def saving(config: ModelConfig, density: float) -> float:
    """MACs that a token skipped on the last scale saves, as a number of smallest experts, at a density of experts."""
    length, experts = config.tokenizer.num_tokens, config.finest
    computed = attention_macs(config, 1, 0, length)
    assert config.token_gate is not None
    if config.token_gate.skips == "block":
        computed += router_macs(config, 1, experts) + round(density * ffn_macs(config, 1, 1))
    skipped = attention_macs(config, 0, 1, length) + reconstruction_macs(config, 1, 1)
    return (computed - skipped) / ffn_macs(config, 1, experts)


@dataclass(frozen=True)
class LeftOut:
    """Tokens (n,) that a gate may leave out: ``h`` (n, C) as it sees them, ``record`` as their reconstruction does.

    ``scale`` is theirs; ``step`` 1 where three of four tokens were left out with them, else at most every second one.
    """

    h: Tensor
    record: Record
    scale: Tensor
    step: Tensor


def left_out(record: Record, config: ModelConfig, *, around: bool) -> LeftOut:
    """The tokens of a ``record`` of all gated scales, one row after the other, as they are when left out on a grid.

    Each is once among every second token, of the even or of the odd places. With ``around``, as reconstructions see
    them that look at neighbours.
    """
    assert config.token_gate is not None
    scales = config.token_gate.scales
    sides = [config.tokenizer.patch_nums[scale] for scale in scales]
    sizes = [side * side for side in sides]

    def by_scale(x: Tensor) -> tuple[Tensor, ...]:
        return torch.split(x.unflatten(0, (-1, sum(sizes))), sizes, dim=1)

    found: list[tuple[Tensor, ...]] = []
    parts = (by_scale(x) for x in (record.h, record.update, record.known, record.out))
    for scale, side, h, update, known, out in zip(scales, sides, *parts, strict=True):
        steps = grid_step(side, h.device)
        for step, keep in ((0, steps > 0), (1, steps > 1), (-1, steps == 0)):
            seen, told = h, known
            if around:
                here = InPlace(keep.expand(h.shape[:2]), side)
                seen, told = here.beside(h), here.mean(update)
            tokens = [x[:, ~keep].flatten(0, 1) for x in (h, seen, update, told, out)]
            numbers = torch.tensor([scale, step], device=h.device).expand(len(tokens[0]), 2).unbind(1)
            found.append((*tokens, *numbers))
    h, seen, update, told, out, of_scale, of_step = (torch.cat(part) for part in zip(*found, strict=True))
    return LeftOut(h, Record(seen, h[:, :0], h[:, :0], update, told, out), of_scale, of_step)


def record_gated(
    student: ActVAR,
    samples: TeacherSamples,
    per_image: int | None,
    threshold: float,
    generator: torch.Generator,
    progress: Progress,
) -> tuple[list[Record], Tensor]:
    """What each block would do to every token of the gated scales, if no gate left any out, and the scales (n,).

    ``per_image`` is that of `record_blocks`.
    """
    positions = student.transformer.gated_positions().nonzero().squeeze(1).cpu()
    blocks = student.transformer.stack
    before = [block.gated_scales for block in blocks]
    for block in blocks:
        block.gated_scales = ()
    records, where = record_blocks(
        student,
        samples,
        positions=positions,
        per_image=per_image,
        threshold=threshold,
        generator=generator,
        progress=progress,
    )
    for block, scales in zip(blocks, before, strict=True):
        block.gated_scales = scales
    return records, student.transformer.lvl_1L[0][where]


@torch.no_grad()
def fit_token_gates(
    student: ActVAR,
    samples: TeacherSamples,
    *,
    threshold: float,
    density: float,
    generator: torch.Generator,
    progress: Progress,
) -> tuple[float, ...]:
    """Fit reconstruction and gate of every block on the student's own activations.

    A gate's score is the log of the error that skipping makes, be it the block or its attention alone, relative to what
    comes out of that, for each expert's worth of work that it saves: the units of the router's scores, so that one
    threshold weighs experts and tokens against each other. Returns, per block, the share of the energy of what is
    skipped that the reconstruction explains.
    """
    config = student.transformer.config
    assert config.token_gate is not None
    blocks = student.transformer.stack
    whole = config.token_gate.kind == "grid" or config.token_gate.reads_neighbours
    most = max(1, RECORDED // int(student.transformer.gated_positions().sum())) if whole else RECORDED
    samples = samples.some(most)
    per_image = None if whole else max(1, RECORDED // len(samples))
    records, scales = record_gated(student, samples, per_image, threshold, generator, progress)
    # At a low density of experts a skipped block saves little: then next to nothing is worth skipping.
    per_expert = math.log(max(saving(config, density), LEAST_SAVING))
    explained: list[float] = []
    # Keys and values are made by the weights that the records were made by.
    with using(student.transformer.weights(threshold)), progress.task("fitting token gates", len(blocks)) as task:
        for block, record in zip(blocks, records, strict=True):
            seen = LeftOut(record.h, record, scales, torch.zeros_like(scales))
            if whole:
                seen = left_out(record, config, around=block.from_neighbours)
            explained.append(fit_reconstruction(block.reconstruction, seen.record))
            if block.rebuilds_kv:
                fit_kv_reconstruction(block.attn, block.kv_reconstruction, seen.record.h, around=block.from_neighbours)
            stand_in = block.reconstruction(seen.record.h, seen.record.known)
            error = relative_energy(stand_in - seen.record.update, seen.record.out) - per_expert
            _fit_gate(block.token_gate, seen, error, generator)
            task.advance(note=f"explains {explained[-1]:.2f}")
    return tuple(explained)


def fit_kv_reconstruction(attn: SelfAttention, net: Reconstruction, read: Tensor, *, around: bool) -> None:
    """Fit ``net`` to the keys and values of tokens ``read`` (n, C), or how these differ from those ``around``."""
    # What is constant then comes with the means of their keys and values.
    fit_low_rank(net, read, attn.keys_and_values(read, constant=not around))


def _fit_gate(gate: TokenGate | StaticGate, seen: LeftOut, error: Tensor, generator: torch.Generator) -> None:
    """Fit ``gate`` to the ``error`` (n,) of the tokens ``seen``, the log of what leaving one out costs."""
    once = seen.step < 1
    if isinstance(gate, GridGate):
        for scale in seen.scale.unique().tolist():
            half, quarter = (error[(seen.scale == scale) & (seen.step == step)].mean().exp() for step in (0, 1))
            steps = grid_step(gate.patch_nums[scale], error.device)
            first, more = (steps == 0).sum(), (steps == 1).sum()
            # In the second step those that were left out before are rebuilt from fewer neighbours.
            added = ((first + more) * quarter - first * half) / more.clamp_min(1)
            gate.scores[scale] = torch.stack((half, torch.maximum(added, half))).log()
    elif isinstance(gate, StaticGate):
        for scale in seen.scale.unique().tolist():
            gate.scores[scale] = error[once & (seen.scale == scale)].mean()
    else:
        fit_perceptron(gate, seen.h[once], error[once], generator)


class Trial(NamedTuple):
    """At which threshold a budget is met, and the log of the divergence there."""

    threshold: float
    divergence: float


def _handicapped(divergences: Mapping[float, float]) -> float:
    """The shift of the least of ``divergences``, of equals the one that skips least, and the handicap."""
    return min(min(reversed(SHIFTS), key=divergences.__getitem__) + HANDICAP, SHIFTS[-1])


@torch.no_grad()
def weigh_gates(student: ActVAR, trials: Callable[[], list[Trial]]) -> list[float]:
    """Shift the scores of all gates by those of `SHIFTS` under which ``trials``, one for each budget, diverge least.

    And by the `HANDICAP` more.

    How much a skipped token harms, beside an expert left out, depends on how much is left out, and on what the experts
    have learned by then. Where each gate's scores are few numbers, those near a budget's threshold are shifted by what
    is best at that budget, between two thresholds by something between; else all by what is best for all. Returns the
    shift at each budget.
    """
    gates = [block.token_gate for block in student.transformer.stack]
    found: dict[float, list[Trial]] = {}
    for shift in SHIFTS:
        for gate in gates:
            gate.shift(shift)
        found[shift] = trials()
        for gate in gates:
            gate.shift(-shift)

    common = _handicapped({shift: sum(trial.divergence for trial in tried) for shift, tried in found.items()})
    each = [
        _handicapped({shift: round(tried[budget].divergence, 2) for shift, tried in found.items()})
        for budget in range(len(found[common]))
    ]
    # A gate's own score at which it begins to skip, and how much is added to it there.
    knots = sorted((found[shift][budget].threshold, shift) for budget, shift in enumerate(each))
    cuts, shifts = [threshold - shift for threshold, shift in knots], [shift for _, shift in knots]
    rising = all(low < high for low, high in pairwise(cuts))
    few = [gate for gate in gates if isinstance(gate, StaticGate) and gate.few]
    if not rising or len(few) < len(gates):
        for gate in gates:
            gate.shift(common)
        return [common] * len(each)
    offsets = torch.tensor(student.config.scale_offsets, device=student.device)
    for gate in few:
        own = gate.scores.detach().view(len(offsets), -1) + offsets[:, None]
        gate.shift(torch.from_numpy(np.interp(own.cpu(), cuts, shifts)).to(own).view_as(gate.scores))
    return each


@torch.no_grad()
def drop_idle_gates(student: ActVAR, samples: TeacherSamples, threshold: float, images: int = 16) -> ActVAR:
    """``student`` without the gates that, at ``threshold``, keep more than `IDLE` of the tokens they see.

    Those of kinds that these are compared with stay as they are.
    """
    gate = student.config.token_gate
    assert gate is not None
    if gate.kind not in ("learned", "grid"):
        return student
    gated = student.transformer.gated_positions()
    decisions = decisions_at(student, samples, threshold, images)
    shares = [1.0 if made.keep is None else float(made.keep[:, gated].mean()) for made in decisions]
    useful = tuple(block for block, share in enumerate(shares) if share <= IDLE)
    return _with_gates(student, gate.model_copy(update={"blocks": useful}))
