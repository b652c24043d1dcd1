from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from actvar_cli.evaluate.distance import frechet_distance, moments


def test_moments_are_mean_and_unbiased_covariance() -> None:
    mu, cov = moments(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
    assert mu.tolist() == [1.0, 1.0]
    assert cov.tolist() == [[2.0, 0.0], [0.0, 0.0]]
    assert mu.dtype == cov.dtype == torch.float64


def test_zero_for_the_same_distribution() -> None:
    mu, cov = moments(torch.randn(400, 16, generator=torch.Generator().manual_seed(0)))
    assert frechet_distance(mu, cov, mu, cov) == pytest.approx(0, abs=1e-6)


def test_known_value_for_diagonal_covariances() -> None:
    mu = torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0])
    cov = torch.diag(torch.tensor([4.0, 1.0])), torch.diag(torch.tensor([9.0, 1.0]))
    # |mu|^2 = 25, and (2 - 3)^2 + 0 from the standard deviations.
    assert frechet_distance(mu[0], cov[0], mu[1], cov[1]) == pytest.approx(26)


def test_singular_covariances_are_fine() -> None:
    few = moments(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)))
    many = moments(torch.randn(300, 16, generator=torch.Generator().manual_seed(1)))
    assert 0 < frechet_distance(*few, *many) == pytest.approx(frechet_distance(*many, *few))


class Projection(nn.Module):
    """Eight features of (N, 3, 4, 4) bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(48, 8)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1).to(self.linear.weight.dtype) / 255)  # type: ignore[no-any-return]


def test_agrees_with_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (200, 3, 4, 4), generator=generator, dtype=torch.uint8)
    fake = torch.randint(50, 180, (200, 3, 4, 4), generator=generator, dtype=torch.uint8)
    projection = Projection()
    peer = FrechetInceptionDistance(projection, input_img_size=(3, 4, 4))
    peer.set_dtype(torch.float64)
    peer.update(real, real=True)
    peer.update(fake, real=False)
    with torch.no_grad():
        ours = frechet_distance(*moments(projection(real)), *moments(projection(fake)))
    assert ours == pytest.approx(float(peer.compute()), rel=1e-4)
