from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from actvar_cli.model import winograd
from actvar_cli.model.counters import exactly
from actvar_cli.model.winograd import Conv3x3, convolve


def layer_and_map(
    channels: tuple[int, int] = (128, 136), height: int = 64, width: int = 68, batch: int = 2
) -> tuple[Conv3x3, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(batch, channels[0], height, width)
    return Conv3x3(*channels).eval(), x.to(memory_format=torch.channels_last)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes that were convolved with fewer multiplications."""
    made: list[torch.Size] = []

    def noted(x: Tensor, *layer: Tensor) -> Tensor:
        made.append(x.shape)
        return convolve(x, *layer)

    monkeypatch.setattr(winograd, "convolve", noted)
    return made


@pytest.mark.parametrize("height", [64, 56])
def test_large_maps_are_convolved_to_the_same(calls: list[torch.Size], height: int) -> None:
    layer, x = layer_and_map(height=height)
    with torch.no_grad():
        made, expected = layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1)
    assert calls == [x.shape]
    assert made.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)


def test_a_layer_without_bias_is_convolved_too() -> None:
    layer, x = layer_and_map()
    with torch.no_grad():
        expected = F.conv2d(x, layer.weight, padding=1)
        torch.testing.assert_close(convolve(x, layer.weight, None), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "shape",
    [{"channels": (64, 136)}, {"channels": (128, 3)}, {"height": 32, "width": 28, "batch": 1}, {"width": 66}],
    ids=["narrow", "to-pixels", "small", "no-multiple"],
)
def test_others_are_left_to_torch(calls: list[torch.Size], shape: dict[str, int]) -> None:
    layer, x = layer_and_map(**shape)  # type: ignore[arg-type]
    with torch.no_grad():
        assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1))
    assert not calls


def test_weights_of_few_bits_are_brought_to_the_type_of_the_map(calls: list[torch.Size]) -> None:
    layer, x = layer_and_map()
    with torch.no_grad():
        layer.bfloat16()
        torch.testing.assert_close(layer(x), copy.deepcopy(layer).float()(x))
    assert len(calls) == 2


def test_gradients_counted_work_other_types_and_the_encoder_are_left_to_torch(calls: list[torch.Size]) -> None:
    layer, x = layer_and_map()
    layer(x).mean().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0
    with torch.no_grad():
        with exactly():
            layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            layer(x)
        layer(x.contiguous())
        layer.bfloat16()(x.bfloat16())
    assert not calls
