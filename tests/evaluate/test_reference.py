from __future__ import annotations

from importlib.resources import files

import pytest
import torch

from actvar_cli.errors import ActvarError
from actvar_cli.evaluate import reference
from actvar_cli.evaluate.reference import CLASS_NAMES, load_reference, real_images, serves
from tests.evaluate.fashion import stand_in, tiny_fashion
from tests.tiny import tiny_model

SHIPPED = (files("actvar_cli") / "assets" / "var-fashion-stats.safetensors").is_file()
needs_assets = pytest.mark.skipif(not SHIPPED, reason="the assets are not built yet")


def test_serves_models_of_the_same_pictures_only_whatever_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    model = tiny_fashion()
    model.configure(name="my-clothes")
    assert serves(model)
    other = tiny_model()
    other.configure(name="var-fashion")
    assert not serves(other)
    with torch.no_grad():
        model.tokenizer.quantize.embedding.weight.mul_(2)
    assert not serves(model)


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
