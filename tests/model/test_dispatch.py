from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from actvar_cli.errors import InputError
from actvar_cli.model import dispatch, products
from actvar_cli.model.config import TransformerConfig
from actvar_cli.model.counters import exactly
from actvar_cli.model.experts import ExpertFFN
from tests.tiny import tiny_model

EXPERTS = 4


def random_ffn(dtype: torch.dtype = torch.float32) -> ExpertFFN:
    torch.manual_seed(0)
    ffn = ExpertFFN(TransformerConfig(depth=1, embed_dim=32, num_heads=1), EXPERTS)
    torch.nn.init.normal_(ffn.expert_mean)
    ffn.fc1.to(dtype)
    ffn.fc2.to(dtype)
    return ffn


def routes(densities: list[float], rows: int = 300) -> Tensor:
    """Whether each expert is on, with these probabilities."""
    return torch.rand(rows, EXPERTS, generator=torch.Generator().manual_seed(1)) < torch.tensor(densities)


@pytest.mark.parametrize("way", [way for way in dispatch.WAYS if way != "tiles"])
@pytest.mark.parametrize(
    ("dtype", "fast", "close"),
    [(torch.float32, False, 1e-5), (torch.bfloat16, False, 0.05), (torch.bfloat16, True, 0.05)],
)
@pytest.mark.parametrize(
    "densities", [[0.5] * 4, [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0.3, 1], [0.97, 0.98, 0.1, 0.99], [0.02] * 4]
)
@torch.inference_mode()
def test_every_way_gives_the_same(
    way: str, dtype: torch.dtype, fast: bool, close: float, densities: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "FAST", (torch.float32, torch.bfloat16) if fast else (torch.float32,))
    ffn, on = random_ffn(dtype), routes(densities)
    x = torch.randn(3, 100, 32)
    expected = random_ffn().masked(x, on.view(3, 100, EXPERTS).float())
    made = dispatch.WAYS[way](ffn, x, on.view(3, 100, EXPERTS))
    assert dispatch._overhead(ffn) == dispatch.OVERHEAD.get(
        dtype if fast else torch.float32, dispatch.OVERHEAD[torch.float32]
    )
    torch.testing.assert_close(made.float(), expected, atol=close, rtol=close)


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.95, 1.0]), min_size=EXPERTS, max_size=EXPERTS),
    st.integers(min_value=1, max_value=400),
)
@torch.inference_mode()
def test_whatever_is_chosen_gives_the_same(densities: list[float], rows: int) -> None:
    ffn, on = random_ffn(), routes(densities, rows)
    x = torch.randn(rows, 32)
    torch.testing.assert_close(dispatch.run(ffn, x, on), ffn.masked(x, on.float()), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_many_rows_in_pieces_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "OVERHEAD", {torch.float32: dispatch.Overhead(0, 0, 0, piece=50)})
    ffn, on = random_ffn(), routes([0.5, 0.1, 0.0, 0.3])
    x = torch.randn(len(on), 32)
    torch.testing.assert_close(dispatch.loop(ffn, x, on), ffn.masked(x, on.float()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("densities", "rows", "expected"),
    [
        ([0.5] * 4, 20, "dense"),
        ([0.99] * 4, 4000, "dense"),
        ([0.1] * 4, 4000, "apart"),
        ([0.99, 0.99, 0.1, 0.1], 4000, "apart"),
    ],
)
@torch.inference_mode()
def test_few_rows_and_high_densities_are_computed_dense(
    monkeypatch: pytest.MonkeyPatch, densities: list[float], rows: int, expected: str
) -> None:
    taken: list[str] = []
    original = dispatch.dense
    monkeypatch.setattr(dispatch, "OVERHEAD", {torch.float32: dispatch.Overhead(call=0, gather=60, mask=12)})
    monkeypatch.setattr(dispatch, "dense", lambda *given: (taken.append("dense"), original(*given))[1])
    dispatch.run(random_ffn(), torch.randn(rows, 32), routes(densities, rows))
    assert (taken or ["apart"]) == [expected]


@torch.inference_mode()
def test_the_environment_can_force_a_way(monkeypatch: pytest.MonkeyPatch) -> None:
    ffn, on = random_ffn(), routes([0.5] * 4)
    x = torch.randn(300, 32)
    monkeypatch.setitem(dispatch.WAYS, "grouped", lambda *_: "forced")  # type: ignore[misc]
    monkeypatch.setenv(dispatch.VARIABLE, "grouped")
    assert dispatch.run(ffn, x, on) == "forced"
    # What is counted must be what was asked for.
    with exactly():
        assert dispatch.run(ffn, x, on) != "forced"
    monkeypatch.setenv(dispatch.VARIABLE, "tiles")
    with pytest.raises(InputError, match="ACTVAR_DISPATCH: 'tiles' needs an NVIDIA GPU"):
        dispatch.run(ffn, x, on)
    monkeypatch.setenv(dispatch.VARIABLE, "grouper")
    with pytest.raises(InputError, match=r"ACTVAR_DISPATCH: there is no way 'grouper' \(did you mean 'grouped'\?\)"):
        dispatch.run(ffn, x, on)


@pytest.mark.parametrize("way", ["dense", "loop", "split"])
def test_experts_under_autocast(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setenv("ACTVAR_DISPATCH", way)
    model = tiny_model(experts=True)
    model.threshold = 0.0
    with torch.autocast("cpu", torch.bfloat16):
        assert model.sample_tokens([0, 1, 2], seed=0).shape == (3, 14)
