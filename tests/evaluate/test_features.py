from __future__ import annotations

import torch

from actvar_cli.evaluate.features import FEATURE_DIM, FeatureClassifier


def test_shapes_and_that_the_head_reads_the_features() -> None:
    torch.manual_seed(0)
    net = FeatureClassifier().eval()
    images = torch.randn(3, 1, 32, 32)
    features = net.features(images)
    assert features.shape == (3, FEATURE_DIM)
    assert features.min() >= 0
    assert torch.allclose(net.head(features), net(images))
    assert [m.shape[1:] for m in net.maps(images)] == [(32, 16, 16), (64, 8, 8), (128, 4, 4)]
