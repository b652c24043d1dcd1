"""The feature network of `var-fashion`: a small classifier of Fashion-MNIST, independent of the generator."""

from __future__ import annotations

from torch import Tensor, nn

FEATURE_DIM = 128
"""Width of the features in which distances between image sets are measured."""


def _stage(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(),
        nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


class FeatureClassifier(nn.Module):
    """Three convolutional stages, 128 features, ten classes; reads (B, 1, 32, 32) in [-1, 1]."""

    def __init__(self, width: int = 32, num_classes: int = 10) -> None:
        super().__init__()
        self.stages = nn.ModuleList([_stage(1, width), _stage(width, 2 * width), _stage(2 * width, 4 * width)])
        self.dropout = nn.Dropout(0.3)
        self.embed = nn.Linear(4 * width * 16, FEATURE_DIM)
        self.head = nn.Linear(FEATURE_DIM, num_classes)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The output of each stage, from (B, width, 16, 16) to (B, 4 * width, 4, 4)."""
        out: list[Tensor] = []
        for stage in self.stages:
            images = stage(images)
            out.append(images)
        return out

    def features(self, images: Tensor) -> Tensor:
        """The features (B, 128) before the last layer."""
        return self.embed(self.dropout(self.maps(images)[-1].flatten(1))).relu()  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (B, num_classes)."""
        return self.head(self.dropout(self.features(images)))  # type: ignore[no-any-return]
