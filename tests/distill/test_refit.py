"""Refitting experts by least squares."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from actvar_cli.convert.convert import convert
from actvar_cli.convert.recording import draw_samples
from actvar_cli.convert.settings import ConvertSettings
from actvar_cli.distill.losses import hidden_error, scale_weights
from actvar_cli.distill.refit import Part, refit, solve
from actvar_cli.model.block import TeacherForced
from actvar_cli.model.sampling import ActVAR, paired_rows
from actvar_cli.progress import Progress
from tests.distill.conftest import teacher_model
from tests.tiny import tiny_model


def regression(seed: int = 0, noise: float = 0.0) -> tuple[list[Part], Tensor]:
    """Tokens in three parts, with gains of either sign that differ by token and channel, and the true weights."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(12, 5, generator=generator)
    parts = []
    for n in (300, 200, 100):
        inputs, gain = torch.randn(n, 12, generator=generator), torch.randn(n, 5, generator=generator)
        missing = gain * (inputs @ truth) + noise * torch.randn(n, 5, generator=generator)
        parts.append(Part(inputs, gain, missing, torch.ones(n, 1)))
    return parts, truth


def test_the_solution_is_found_in_few_steps() -> None:
    parts, truth = regression()
    torch.testing.assert_close(solve(parts, ridge=1e-6, iterations=4), truth, atol=0.01, rtol=0.01)
    rough = solve(parts, ridge=1e-6, iterations=2)
    assert float((rough - truth).norm() / truth.norm()) < 0.05


def test_the_ridge_holds_back() -> None:
    parts, truth = regression(noise=3.0)
    sizes = [float(solve(parts, ridge=ridge, iterations=6).norm()) for ridge in (1e-6, 1.0, 100.0)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.1 * float(truth.norm())


@torch.no_grad()
def block_errors(student: ActVAR, threshold: float) -> float:
    """Relative error of the blocks' outputs on samples that nothing was fitted to."""
    teacher = teacher_model()
    samples = draw_samples(teacher, 64, seed=321, progress=Progress())
    rows, var_input = paired_rows(teacher, samples.labels, samples.tokens)
    wanted: list[Tensor] = []
    made: list[Tensor] = []
    teacher.transformer(rows, var_input, hidden=wanted)
    student.transformer(rows, var_input, student.transformer.teacher_forced(threshold), hidden=made)
    return float(hidden_error(wanted, made))


def test_a_refitted_student_is_closer_to_the_teacher_and_works_as_much() -> None:
    teacher = teacher_model()
    student = convert(teacher, ConvertSettings(experts=4, images=16)).model
    threshold = next(d.threshold for d in student.config.dials if d.budget == 0.7)
    before, routers = block_errors(student, threshold), student.transformer.stack[0].router.fc1.weight.clone()
    samples = draw_samples(teacher, 128, seed=1, progress=Progress())
    errors = refit(teacher, student, samples, thresholds=[threshold], progress=Progress())
    assert len(errors) == 2
    assert block_errors(student, threshold) < 0.9 * before
    assert torch.equal(student.transformer.stack[0].router.fc1.weight, routers)


def test_one_set_of_weights_serves_several_thresholds() -> None:
    teacher = teacher_model()
    converted = convert(teacher, ConvertSettings(experts=4, images=16)).model
    low, high = (next(d.threshold for d in converted.config.dials if d.budget == b) for b in (0.6, 0.9))
    samples = draw_samples(teacher, 128, seed=1, progress=Progress())
    errors = []
    for thresholds in ([low], [low, high]):
        student = copy.deepcopy(converted)
        refit(teacher, student, samples, thresholds=thresholds, progress=Progress())
        errors.append((block_errors(student, low), block_errors(student, high)))
    alone, both = errors
    assert both[1] < alone[1]
    assert both[0] < 1.3 * alone[0]
    assert both[0] < block_errors(converted, low)
    # What misses little already is not given up for what misses much.
    assert both[1] < 1.05 * block_errors(converted, high)


@torch.no_grad()
def test_the_errors_told_are_those_of_the_refitted_student_with_tokens_left_out() -> None:
    teacher, student = tiny_model(), tiny_model(experts=True, token_gate=True)
    student.transformer.load_state_dict(teacher.transformer.state_dict(), strict=False)
    samples = draw_samples(teacher, 16, seed=1, progress=Progress())
    told = refit(teacher, student, samples, thresholds=[0.0], progress=Progress())
    rows, var_input = paired_rows(teacher, samples.labels, samples.tokens)
    wanted: list[Tensor] = []
    made: list[Tensor] = []
    context = student.transformer.teacher_forced(0.0)
    teacher.transformer(rows, var_input, hidden=wanted)
    student.transformer(rows, var_input, context, hidden=made)
    assert any(d.keep is not None and bool((d.keep == 0).any()) for d in context.decisions)
    weights = scale_weights(teacher.config.tokenizer.patch_nums)
    found = [float(hidden_error([w], [m], weights)) for w, m in zip(wanted, made, strict=True)]
    torch.testing.assert_close(torch.tensor(told), torch.tensor(found), rtol=1e-3, atol=1e-6)


@torch.no_grad()
def test_every_threshold_has_its_share_of_both_kinds_of_rows() -> None:
    teacher = teacher_model()
    student = convert(teacher, ConvertSettings(experts=4, images=16)).model
    # How the sequence of a row without a class begins.
    begins = teacher.transformer.embed(torch.tensor([3]), torch.zeros(1, 13, 8))[0][0, 0]
    seen: list[tuple[float | None, int, int]] = []

    def watch(block: Any, inputs: tuple[Tensor, Tensor, TeacherForced], out: Tensor) -> None:
        x, _, context = inputs
        seen.append((context.dial, len(x), int((x[:, 0] == begins).all(-1).sum())))

    student.transformer.stack[0].register_forward_hook(watch)
    samples = draw_samples(teacher, 6, seed=1, progress=Progress())
    refit(teacher, student, samples, thresholds=[0.0, -1.0, -2.0], progress=Progress())
    # All 12 rows would fit into one go.
    assert seen == [(threshold, 4, 2) for threshold in (0.0, -1.0, -2.0)]
