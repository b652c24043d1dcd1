"""Distances between two sets of images, in the features of a network the caller names."""

from __future__ import annotations

import torch
from torch import Tensor


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of features (N, D), in float64."""
    features = features.double()
    return features.mean(0), torch.cov(features.T)


def frechet_distance(mu1: Tensor, cov1: Tensor, mu2: Tensor, cov2: Tensor) -> float:
    """Frechet distance between two Gaussians: ``|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))``.

    Means (D,), covariances (D, D). The trace of the root is the sum of the roots of the eigenvalues of ``S1 S2``,
    which are real and not negative. Source: Heusel et al. 2017, arXiv 1706.08500, section 3.
    """
    eigenvalues = torch.linalg.eigvals(cov1.double() @ cov2.double()).real.clamp_min(0)
    difference = (mu1.double() - mu2.double()).square().sum()
    trace = torch.trace(cov1.double()) + torch.trace(cov2.double()) - 2 * eigenvalues.sqrt().sum()
    return float(difference + trace)
