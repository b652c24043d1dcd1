"""What pictures of `var-fashion` are measured against: the feature network and the real pictures that are shipped."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files

import torch
from safetensors.torch import load_file
from torch import Tensor

from actvar_cli.errors import ActvarError
from actvar_cli.evaluate.distance import frechet_distance
from actvar_cli.evaluate.features import FEATURE_DIM, FeatureClassifier
from actvar_cli.model.sampling import ActVAR
from actvar_cli.weights.fashion import NAME, is_fashion

FEATURE_NETWORK = f"var-fashion classifier, {FEATURE_DIM}-d"
"""How a distance names the network whose features it is measured in."""

CLASS_NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
"""The classes of Fashion-MNIST, in the order of their labels."""


@dataclass(frozen=True)
class Reference:
    """The classifier and the moments (mean (D,), covariance (D, D)) of the real images' features."""

    network: FeatureClassifier
    test: tuple[Tensor, Tensor]
    train: tuple[Tensor, Tensor]

    @property
    def floor(self) -> float:
        """Frechet distance of the real training images to the real test images: as good as it gets."""
        return frechet_distance(*self.train, *self.test)

    @torch.no_grad()
    def judge(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D), on the CPU, and predicted labels (B,) of uint8 images (B, 1, 32, 32)."""
        device = next(self.network.parameters()).device
        features = self.network.features(images.to(device).float().div(127.5).sub(1))
        return features.cpu(), self.network.head(features).argmax(1).cpu()


def serves(model: ActVAR) -> bool:
    """Whether ``model`` makes `var-fashion`'s pictures, of as many classes."""
    return model.config.transformer.num_classes == len(CLASS_NAMES) and is_fashion(model)


def _asset(file: str) -> dict[str, Tensor]:
    resource = files("actvar_cli") / "assets" / file
    if not resource.is_file():
        raise ActvarError(f"this installation of actvar lacks {file}: install it again")
    with as_file(resource) as path:
        return load_file(path)


def load_reference(device: torch.device | str = "cpu") -> Reference:
    """The shipped reference, its network in eval mode on ``device``; ActvarError where a file is missing."""
    network = FeatureClassifier()
    network.load_state_dict(_asset(f"{NAME}-classifier.safetensors"))
    stats = _asset(f"{NAME}-stats.safetensors")
    test, train = ((stats[f"{split}.mu"], stats[f"{split}.cov"]) for split in ("test", "train"))
    return Reference(network.eval().to(device), test, train)


def real_images() -> tuple[Tensor, Tensor]:
    """Real test images (400, 1, 32, 32) uint8 and their labels (400,)."""
    tensors = _asset(f"{NAME}-real.safetensors")
    return tensors["images"], tensors["labels"]
