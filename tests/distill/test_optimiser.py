"""Which parameters take which steps, and what is kept of the gradients between two stages."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from actvar_cli.distill.optimiser import SIZE, Optimiser, learning_rate, orthogonal

MATRIX, OTHER = "blocks.0.ffn.fc1.weight", "blocks.0.router.fc1.weight"


def optimiser(parameters: dict[str, nn.Parameter], lr: float = 0.1, steps: int = 4, kind: str = "muon") -> Optimiser:
    return Optimiser(parameters, lr=lr, steps=steps, precision="no", device=torch.device("cpu"), kind=kind)


def ones(*names: str) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.ones(2, 3)) for name in names}


def total(parameters: dict[str, nn.Parameter]) -> Tensor:
    return torch.stack([parameter.sum() for parameter in parameters.values()]).sum()


@pytest.mark.parametrize("shape", [(24, 24), (16, 64), (64, 16)])
def test_a_step_goes_equally_far_in_all_directions_of_a_matrix(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    # From 1 down to a tenth, as no gradient is of one direction alone.
    matrix = u @ torch.diag(torch.linspace(1, 0.1, len(s))) @ v
    found = torch.linalg.svdvals(orthogonal(matrix))
    assert found.min() > 0.6 and found.max() < 1.3
    torch.testing.assert_close(orthogonal(100 * matrix), orthogonal(matrix), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (32, 32)])
def test_steps_of_matrices_are_as_large_as_those_of_all_else(shape: tuple[int, int]) -> None:
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    parameters = {name: nn.Parameter(torch.zeros(shape)) for name in (MATRIX, OTHER)}
    optimiser(parameters, lr=0.5, steps=1).step(
        torch.stack([(p * gradient).sum() for p in parameters.values()]).sum(), 0
    )
    rms = {name: float(p.detach().square().mean().sqrt()) for name, p in parameters.items()}
    # AdamW's first step is the learning rate for each element, later ones about a fifth of it.
    assert rms[OTHER] == pytest.approx(0.5, rel=0.01)
    assert rms[MATRIX] == pytest.approx(0.5 * SIZE, rel=0.25)


def test_without_muon_all_steps_are_those_of_adamw() -> None:
    parameters = ones(MATRIX, OTHER)
    optimiser(parameters, lr=0.5, steps=1, kind="adamw").step(total(parameters), 0)
    assert all(p.detach().allclose(torch.full((2, 3), 0.5)) for p in parameters.values())


def test_a_stage_goes_on_with_the_moments_of_the_one_before() -> None:
    first = optimiser(before := ones(MATRIX, OTHER))
    second = optimiser(after := ones("new.weight", OTHER, MATRIX))
    assert first.moments() == {}
    first.step(total(before), 0)
    second.adopt(first.moments())
    assert second.moments() == first.moments()
    assert set(first.moments()) == {MATRIX, OTHER}
    second.step(total(after), 1)
    assert all(float(p[0, 0].detach()) < 1 for p in after.values())
    assert set(second.moments()) == set(after)


def test_a_step_that_explodes_is_left_out() -> None:
    taker = optimiser(parameters := ones(MATRIX, OTHER))
    norm = taker.step(total(parameters) * torch.inf, 0)
    assert not norm.isfinite()
    assert all(torch.equal(p.detach(), torch.ones(2, 3)) for p in parameters.values())


def test_the_learning_rate_rises_and_falls_to_nothing() -> None:
    rates = [learning_rate(step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1 and rates[55] == pytest.approx(0.5) and rates[100] == pytest.approx(0)
    parameters = ones(OTHER)
    taken = optimiser(parameters, steps=100, kind="adamw")
    for step in (9, 99):
        before = parameters[OTHER].detach().clone()
        taken.step(total(parameters), step)
        moved = float((parameters[OTHER] - before).abs().max())
        assert moved == pytest.approx(0.1 * learning_rate(step, 100), rel=0.5)
