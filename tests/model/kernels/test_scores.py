from __future__ import annotations

import pytest
import torch

from actvar_cli.model.deciding import Perceptron
from actvar_cli.model.router import RelativeRouter, Router


def random_perceptron(kind: type[Perceptron] = Perceptron) -> Perceptron:
    torch.manual_seed(0)
    made = kind(64, 24, 5)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    made.fc1.half()
    return made


@pytest.mark.parametrize("shape", [(1,), (3, 50), (5000,)])
@torch.no_grad()
def test_decisions_are_those_of_the_scores(shape: tuple[int, ...]) -> None:
    model, x = random_perceptron(Router), torch.randn(*shape, 64).half()
    scores, decided = model(x), model(x, above=0.3)
    assert scores.dtype == torch.float32
    assert decided.dtype == torch.bool and decided.shape == scores.shape
    # The kernel rounds less on the way.
    sure = (scores - 0.3).abs() > 0.02
    assert torch.equal(decided[sure], scores[sure] > 0.3)
    assert 0.2 < decided.float().mean() < 0.8 or len(shape) == 1


@torch.no_grad()
def test_scores_relative_to_the_best_are_compared_as_such() -> None:
    model, x = random_perceptron(RelativeRouter), torch.randn(9, 64).half()
    assert torch.equal(model(x, above=-0.5), model(x) > -0.5)
    assert model(x, above=-0.5).any(-1).all()
