from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from actvar_cli.model import products
from actvar_cli.model.counters import exactly
from actvar_cli.model.products import Linear, lacking, linear, product_dtype


@pytest.mark.parametrize("rows", [(0,), (1,), (3, 5), (700,)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float64, 1e-12)])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("sliced", [False, True])
def test_every_way_gives_the_same(
    rows: tuple[int, ...], dtype: torch.dtype, close: float, gelu: bool, sliced: bool
) -> None:
    torch.manual_seed(0)
    x, bias = torch.randn(*rows, 24, dtype=dtype), torch.randn(16, dtype=dtype)
    weight = torch.randn(16, 48, dtype=dtype)[:, 8:32] if sliced else torch.randn(16, 24, dtype=dtype)
    plain = F.linear(x, weight, bias)
    expected = F.gelu(plain, approximate="tanh") if gelu else plain
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, weight, bias, gelu=gelu), expected, atol=close, rtol=close)


def test_gradients_flow() -> None:
    layer = Linear(8, 4)
    layer(torch.randn(3, 8), gelu=True).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0


def test_autocast_is_heeded() -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert Linear(8, 4)(torch.randn(3, 8)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_few_bits_are_multiplied_in_the_type_of_what_they_meet(dtype: torch.dtype) -> None:
    layer, x = Linear(512, 512, dtype=dtype), torch.randn(3, 5, 512)
    with torch.no_grad():
        made = layer(x, gelu=True)
        expected = copy.deepcopy(layer).float()(x, gelu=True)
    assert made.dtype == torch.float32
    assert torch.equal(made, expected)
    assert layer.weight.dtype == dtype


def test_only_a_cpu_multiplies_in_another_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "FAST", (torch.float32,))
    for device, used in (("cpu", torch.float32), ("meta", torch.float16)):
        assert product_dtype(torch.empty(2, 2, dtype=torch.float16, device=device)) == used


@pytest.mark.skipif(not products.ONEDNN, reason="torch was built without oneDNN")
def test_without_gradients_a_cpu_takes_the_fused_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the plain way was taken")

    layer, x = Linear(8, 4), torch.randn(1, 3, 8)
    monkeypatch.setattr(F, "linear", never)
    with torch.no_grad():
        layer(torch.randn(1, products.GELUS_APART, 8), gelu=True)
        Linear(512, 512)(torch.randn(1, 3, 512))
    with pytest.raises(AssertionError, match="the plain way"):
        layer(x)
    # A small matrix is multiplied before oneDNN has begun.
    for gelu in (False, True):
        with torch.no_grad(), pytest.raises(AssertionError, match="the plain way"):
            layer(x, gelu=gelu)
    # Tokens that were picked are ever another number, for each of which oneDNN would have to prepare.
    with torch.no_grad(), pytest.raises(AssertionError, match="the plain way"):
        layer(x[0])


def test_picked_rows_are_filled_up_to_one_of_a_few_numbers_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.empty(4, 8, dtype=torch.bfloat16)
    monkeypatch.setattr(products, "DTYPES", (torch.float32, torch.bfloat16))
    monkeypatch.setattr(products, "FAST", (torch.float32,))
    with torch.no_grad():
        # They are multiplied in float32.
        assert lacking(5, weight) == 0
    monkeypatch.setattr(products, "FAST", (torch.float32, torch.bfloat16))
    with torch.no_grad():
        assert lacking(5, weight.float()) == 0
        filled = {rows: rows + lacking(rows, weight) for rows in range(1, 4097)}
        assert all(n <= up < n + max(16, n / 16 + 1) for n, up in filled.items())
        assert len(set(filled.values())) < 100
        with exactly():
            assert lacking(5, weight) == 0


def test_bfloat16_goes_the_plain_way_where_onednn_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("oneDNN was asked")

    monkeypatch.setattr(products, "DTYPES", (torch.float32,))
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", never, raising=False)
    with torch.no_grad():
        assert Linear(8, 4, dtype=torch.bfloat16)(torch.randn(1, 3, 8, dtype=torch.bfloat16)).shape == (1, 3, 4)
