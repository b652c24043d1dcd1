from __future__ import annotations

from importlib.resources import files

import pytest
import torch

from actvar_cli.errors import ActvarError
from actvar_cli.evaluate import reference
from actvar_cli.evaluate.reference import CLASS_NAMES, load_reference, real_images, serves
from tests.evaluate.fashion import tiny_fashion
from tests.tiny import tiny_config

SHIPPED = (files("actvar_cli") / "assets" / "var-fashion-stats.safetensors").is_file()
needs_assets = pytest.mark.skipif(not SHIPPED, reason="the assets are not built yet")


def test_serves_models_of_the_same_pictures_only() -> None:
    config = tiny_fashion().config
    assert serves(config)
    assert not serves(config.model_copy(update={"name": "my-digits"}))
    assert not serves(tiny_config().model_copy(update={"name": "var-fashion"}))


def test_missing_asset_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ActvarError, match=r"lacks no-such\.safetensors: install it again"):
        reference._asset("no-such.safetensors")


@needs_assets
def test_shipped_classifier_is_good_and_the_floor_is_low() -> None:
    shipped = load_reference()
    images, labels = real_images()
    assert images.shape == (400, 1, 32, 32)
    assert images.dtype == torch.uint8
    features, predictions = shipped.judge(images)
    assert features.shape == (400, 128)
    assert (predictions == labels).float().mean() > 0.9
    assert sorted(labels.unique().tolist()) == list(range(len(CLASS_NAMES)))
    assert 0 < shipped.floor < 0.03
