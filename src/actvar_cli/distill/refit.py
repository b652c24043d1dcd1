"""Refits in closed form what follows the routers: block after block, on what the student itself sees.

For given decisions an FFN's output is linear in its second layer, the experts' means and its bias. Leaving experts out
changes what the best of these are: those that are on can say part of what the others would have said, and every block
can make up for what the blocks before it got wrong. Layer-wise least squares on the compressed model's own inputs is
known from post-training quantisation and pruning (AdaRound, arXiv 2004.10568; SparseGPT, arXiv 2301.00774).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from actvar_cli.convert.recording import TeacherSamples
from actvar_cli.distill.losses import hidden_error, scale_weights
from actvar_cli.model.experts import ExpertFFN
from actvar_cli.model.guidance import blend
from actvar_cli.model.sampling import ActVAR, rows_of
from actvar_cli.progress import Progress

TOKENS = 2**16
"""Tokens that are looked at, at most, both rows of every image counted."""

RIDGE = 0.1
"""Pull towards the present weights, as a share of the mean energy of an input."""

ITERATIONS = 2
"""Of conjugate gradients; the preconditioner is nearly the inverse, so few are enough."""

ROWS = 32
"""Sequences that go through a block at once, at most."""

MOST = 30.0
"""Weight of the tokens of one threshold, at most, as a multiple of that of another."""


class Part(NamedTuple):
    """Tokens of a regression: ``inputs`` (n, D), ``gain`` (n, C) on the outputs, what is ``missing`` (n, C), weights.

    ``weight`` is (n, 1).
    """

    inputs: Tensor
    gain: Tensor
    missing: Tensor
    weight: Tensor


def solve(parts: Sequence[Part], ridge: float = RIDGE, iterations: int = ITERATIONS) -> Tensor:
    """The change W (D, C) that minimises ``weight |missing - gain * (inputs @ W)|^2``, plus a ridge, over all tokens.

    The gain, AdaLN's g2, differs by token and channel, so every channel has a regression of its own. All are solved
    together by conjugate gradients, preconditioned by the one regression with the gain's mean over the channels.
    """
    weights = [p.weight * p.gain.square() for p in parts]
    by_token = [w.mean(1, keepdim=True) for w in weights]
    gram = sum(p.inputs.T @ (p.inputs * w) for p, w in zip(parts, by_token, strict=True))
    assert isinstance(gram, Tensor)
    total = sum(float(w.sum()) for w in by_token)
    channels = torch.stack([w.sum(0) for w in weights]).sum(0) / max(total, 1e-12)
    damping = ridge * gram.diagonal().mean() + 1e-12
    # On the CPU: not every device has float64.
    damped = gram.cpu().double() + float(damping) * torch.eye(len(gram), dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped)).to(gram)
    channels = channels.clamp_min(1e-6)

    def precondition(r: Tensor) -> Tensor:
        return inverse @ r / channels

    def apply(w: Tensor) -> Tensor:
        products = (p.inputs.T @ ((p.inputs @ w) * g) for p, g in zip(parts, weights, strict=True))
        return sum(products, damping * channels * w)

    rest = torch.stack([p.inputs.T @ (p.weight * p.gain * p.missing) for p in parts]).sum(0)
    found = torch.zeros_like(rest)
    step = precondition(rest)
    energy = (rest * step).sum(0)
    for _ in range(iterations):
        bent = apply(step)
        length = energy / (step * bent).sum(0).clamp_min(1e-20)
        found = found + length * step
        rest = rest - length * bent
        better = precondition(rest)
        energy, before = (rest * better).sum(0), energy
        step = better + energy / before.clamp_min(1e-20) * step
    return found


def balanced(parts: Sequence[Part], thresholds: int) -> list[Part]:
    """``parts``, whose ``thresholds`` take turns, each weighed by the root of how small an error its threshold makes.

    A high budget misses little. Weighed by squared errors alone it would be sacrificed to a low one, which misses much.
    """
    energies = []
    for turn in (parts[i::thresholds] for i in range(min(thresholds, len(parts)))):
        energy = sum(float((part.weight * part.missing.square()).sum()) for part in turn)
        energies.append(energy / sum(len(part.missing) for part in turn))
    most = max(energies)
    factors = [min(MOST, math.sqrt(most / max(energy, 1e-20))) for energy in energies]
    return [part._replace(weight=part.weight * factors[i % thresholds]) for i, part in enumerate(parts)]


def ffn_inputs(ffn: ExpertFFN, h: Tensor, on: Tensor) -> Tensor:
    """What the FFN's output is linear in, (n, hidden + E + 1), for its inputs ``h`` (n, C) and decisions (n, E)."""
    return torch.cat((ffn.masked_hidden(h, on), 1 - on, torch.ones_like(on[:, :1])), dim=1)


def add(ffn: ExpertFFN, change: Tensor) -> None:
    """Add a ``change`` (hidden + E + 1, C) of `ffn_inputs`' weights to the FFN."""
    weight, means, bias = change.split((ffn.fc2.in_features, ffn.num_experts, 1))
    ffn.fc2.weight.add_(weight.T)
    ffn.expert_mean.add_(means)
    ffn.fc2.bias.add_(bias[0])


@torch.no_grad()
def refit(
    teacher: ActVAR, student: ActVAR, samples: TeacherSamples, *, thresholds: Sequence[float], progress: Progress
) -> tuple[float, ...]:
    """Refit the FFNs of ``student`` in place, at its decisions, to what ``teacher``'s blocks put out.

    The sequences are shared out among the ``thresholds``: one set of weights serves all of them (`balanced`).
    Where the student has learned guidance, so has the teacher: both compute the same row.
    Scales count as in the loss, by `scale_weights`. Returns every block's error afterwards, as `hidden_error` has it.
    Tokens that the student leaves out count for that, but not for the fit.
    """
    images = max(1, TOKENS // (student.config.rows * student.config.tokenizer.num_tokens))
    few = samples.some(images)
    rows = rows_of(teacher, few.labels, few.tokens)
    # An image's rows one after the other, so that no threshold gets but one kind of them.
    labels, var_input = (of.unflatten(0, (-1, len(few))).transpose(0, 1).flatten(0, 1) for of in rows)
    shares = min(len(labels), len(thresholds) * math.ceil(len(labels) / (ROWS * len(thresholds))))
    strength = student.transformer.teacher_forced(thresholds[0]).strength
    var, length = student.transformer, student.config.tokenizer.num_tokens
    embedded, cond = teacher.transformer.embed(labels, var_input, strength)
    wanted, made = list(embedded.tensor_split(shares)), list(embedded.tensor_split(shares))
    conditions = [ada.tensor_split(shares) for ada in teacher.transformer.conditions(cond)]
    weights = scale_weights(student.config.tokenizer.patch_nums, student.device)
    errors: list[float] = []
    with progress.task("refitting experts", len(var.stack)) as task:
        for original, block, ada in zip(teacher.transformer.stack, var.stack, conditions, strict=True):
            assert isinstance(block.ffn, ExpertFFN)
            plain = teacher.transformer.teacher_forced()
            # Blended for few sequences at a time: with guidance learned, every position has parameters of its own.
            wanted = [original(x, blend(a, strength), plain) for x, a in zip(wanted, ada, strict=True)]
            parts: list[Part] = []
            kept: list[Tensor] = []
            for i, (x, a) in enumerate(zip(made, ada, strict=True)):
                everything = torch.arange(len(x) * length, device=x.device)
                context = var.teacher_forced(thresholds[i % len(thresholds)], pick=everything)
                made[i] = block(x, blend(a, strength), context)
                decisions, record = context.decisions[0], context.records[0]
                assert decisions.on is not None
                # Where attention alone is skipped, every token has gone through the FFN.
                keep = None if block.skips_attention else decisions.keep
                kept.append(everything if keep is None else keep.flatten().nonzero().squeeze(1))
                inputs = ffn_inputs(block.ffn, record.h_ffn[kept[i]], decisions.on.flatten(0, 1)[kept[i]])
                missing = (wanted[i] - made[i]).flatten(0, 1)[kept[i]]
                parts.append(Part(inputs, record.gain[kept[i]], missing, weights[kept[i] % length, None]))
            change = solve(balanced(parts, len(thresholds)))
            add(block.ffn, change)
            # What the block puts out now follows without running it again.
            for x, tokens, part in zip(made, kept, parts, strict=True):
                x.view(-1, x.shape[-1]).index_add_(0, tokens, part.gain * (part.inputs @ change))
            errors.append(float(hidden_error([torch.cat(wanted)], [torch.cat(made)], weights)))
            task.advance(note=f"error {errors[-1]:.3f}")
    return tuple(errors)
