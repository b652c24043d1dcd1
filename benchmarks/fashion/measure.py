"""What the trained parts reach: the figures of benchmarks/results/train_var_fashion.json."""

from __future__ import annotations

import torch
from torch import Tensor

from actvar_cli.evaluate.distance import frechet_distance, moments
from actvar_cli.evaluate.features import FeatureClassifier
from actvar_cli.evaluate.images import to_uint8
from actvar_cli.evaluate.reference import CLASS_NAMES
from actvar_cli.model.sampling import ActVAR
from actvar_cli.model.tokenizer import Tokenizer
from fashion.data import to_float

Moments = tuple[Tensor, Tensor]


@torch.no_grad()
def features(net: FeatureClassifier, images: Tensor) -> Tensor:
    """Features (N, 128) of images (N, 1, 32, 32) uint8."""
    return torch.cat([net.features(to_float(x)) for x in images.split(100)])


@torch.no_grad()
def reconstructions(model: Tokenizer, images: Tensor) -> Tensor:
    """Images (N, 1, 32, 32) uint8 through the tokenizer and back."""
    return torch.cat([to_uint8(model.decode(model.encode(to_float(x))).add(1).mul(0.5)) for x in images.split(50)])


def reconstruction_distance(model: Tokenizer, net: FeatureClassifier, images: Tensor) -> float:
    """Frechet distance of the reconstructions of ``images`` (N, 1, 32, 32) uint8 to them."""
    made, real = features(net, reconstructions(model, images)), features(net, images)
    return frechet_distance(*moments(made), *moments(real))


@torch.no_grad()
def sample_quality(model: ActVAR, net: FeatureClassifier, test: Moments, *, count: int, seed: int) -> dict[str, object]:
    """Distance to the test set and class accuracies of ``count`` samples with cfg 1.5, classes in turn."""
    labels = torch.arange(count) % 10
    images = [to_uint8(model.sample(y, seed=seed * 1_000_003 + i).images) for i, y in enumerate(labels.split(50))]
    f = features(net, torch.cat(images))
    right = (net.head(f).argmax(1) == labels).float()
    return {
        "count": count,
        "seed": seed,
        "distance": frechet_distance(*moments(f), *test),
        "accuracy": float(right.mean()),
        "accuracy_by_class": {name: float(right[labels == c].mean()) for c, name in enumerate(CLASS_NAMES)},
    }
