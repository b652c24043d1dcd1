from __future__ import annotations

from typing import Any

import pytest
import torch

from actvar_cli.errors import ActvarError, InputError
from actvar_cli.model.config import Dial
from actvar_cli.model.counters import WorkCounter, dense_macs
from actvar_cli.model.sampling import ActVAR, balanced_labels
from actvar_cli.profile import profile as module
from actvar_cli.profile.profile import Profile, parameters, profile
from actvar_cli.profile.timing import Measured
from tests.tiny import tiny_model


def dialled(default: float | None = 0.7) -> ActVAR:
    model = tiny_model(experts=True, token_gate=True)
    dials = (Dial(budget=0.6, threshold=0.1, cost=0.6), Dial(budget=0.7, threshold=-0.1, cost=0.7))
    model.config = model.config.model_copy(update={"dials": dials, "default_budget": default})
    return model


def test_dense_model_has_dense_columns_only() -> None:
    p = profile(tiny_model(), batch=2, repeats=1)
    assert p.compressed is None
    assert p.cost is p.speedup is p.efficiency is p.budget is p.threshold is None
    assert p.dense.transformer_flops == 2 * dense_macs(tiny_model().config)
    assert p.dense.image_flops == p.dense.transformer_flops + p.dense.tokenizer_flops
    assert all(compressed == "" for _, _, compressed in p.rows())


def test_numbers_of_a_compressed_model_fit_together() -> None:
    model = dialled()
    model.threshold = 0.0
    p = profile(model, batch=4, repeats=2, seed=5)
    c = p.compressed
    assert c is not None
    counter = WorkCounter(model.config)
    model.sample(balanced_labels(4, 3), seed=5, counter=counter)
    assert p.cost == pytest.approx(counter.cost)
    assert p.image_cost == pytest.approx(c.image_flops / p.dense.image_flops)
    assert p.cost < p.image_cost < 1
    assert p.speedup == pytest.approx(p.dense.seconds_per_image / c.seconds_per_image)
    assert p.promised_speedup == pytest.approx(1 / p.image_cost)
    assert p.efficiency == pytest.approx(p.speedup / p.promised_speedup)
    assert sum(c.parts.values()) == pytest.approx(c.transformer_flops)
    assert sum(c.scales) == pytest.approx(c.transformer_flops)
    inside = {n: v for n, v in c.modules.items() if not n.startswith("tokenizer.")}
    assert sum(inside.values()) == pytest.approx(c.transformer_flops_fvcore)
    assert sum(c.modules.values()) == pytest.approx(c.image_flops)
    assert {"blocks.0.attn", "blocks.1.token_gate", "tokenizer.decoder"} <= set(c.modules)
    assert abs(c.difference) < 0.005
    assert c.token_density == counter.density("tokens")
    assert c.seconds_fastest <= c.seconds_per_image <= c.seconds_slowest
    assert c.images_per_second == pytest.approx(1 / c.seconds_per_image)
    assert ("cost, transformer", "100 %", f"{100 * p.cost:.1f} %") in p.rows()


def test_json_round_trip() -> None:
    model = dialled()
    p = profile(model, batch=2, repeats=1)
    assert Profile.model_validate_json(p.model_dump_json()) == p


def test_parameters_are_all_there_tokenizer_apart() -> None:
    model = tiny_model(experts=True, token_gate=True)
    counts = parameters(model)
    assert counts["total"] == sum(p.numel() for p in model.transformer.parameters())
    assert counts["total"] == sum(v for k, v in counts.items() if k != "total")
    assert counts["router"] == 2 * (32 * 8 + 8 + 8 * 4 + 4)


def test_a_model_whose_weights_move_is_profiled_and_the_change_counted_where_the_weights_are() -> None:
    model, still = (tiny_model(experts=True, guidance=True, delta=delta) for delta in (True, False))
    model.threshold = 0.0
    counts, fixed = profile(model, batch=2, repeats=1, measure=True).parameters, parameters(still)
    assert counts["total"] == sum(p.numel() for p in model.transformer.parameters())
    assert counts["attention"] == 2 * fixed["attention"]
    # But for the means of the experts, which do not move.
    assert counts["ffn"] == 2 * fixed["ffn"] - 2 * 4 * 32
    assert counts["router"] == fixed["router"]


@pytest.mark.parametrize(
    ("current", "budget", "expected"),
    [(None, None, (0.7, -0.1)), (0.1, None, (0.6, 0.1)), (0.3, None, (None, 0.3)), (None, 0.6, (0.6, 0.1))],
)
def test_which_budget(current: float | None, budget: float | None, expected: tuple[float | None, float]) -> None:
    model = dialled()
    model.threshold = current
    p = profile(model, budget=budget, batch=2, repeats=1)
    assert (p.budget, p.threshold) == expected
    assert model.threshold == current


def test_without_a_default_the_lowest_budget() -> None:
    assert profile(dialled(default=None), batch=2, repeats=1).budget == 0.6


def test_budget_one_is_dense() -> None:
    p = profile(dialled(), budget=1.0, batch=2, repeats=1)
    assert p.compressed is None
    assert p.budget == 1.0


def test_bad_budgets_are_the_users_mistake() -> None:
    model = dialled()
    model.threshold = 0.25
    with pytest.raises(InputError, match=r"budget 0\.3 is outside the calibrated range 0\.6 to 0\.7"):
        profile(model, budget=0.3, batch=2, repeats=1)
    assert model.threshold == 0.25
    with pytest.raises(InputError, match="tiny is dense"):
        profile(tiny_model(), budget=0.7, batch=2, repeats=1)
    with pytest.raises(InputError, match="batch and repeats must be at least 1, not 0 and 5"):
        profile(model, batch=0)


def test_wrong_dense_formula_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "dense_macs", lambda config, images: dense_macs(config, images) + 1)
    with pytest.raises(ActvarError, match="the formula says"):
        profile(tiny_model(), batch=1, repeats=1)


def test_global_random_numbers_are_left_alone() -> None:
    torch.manual_seed(0)
    model = tiny_model()
    state = torch.get_rng_state()
    profile(model, batch=2, repeats=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_median_counts_and_no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(ways: Any, **_: Any) -> Any:
        for way in ways.values():
            for _ in range(3 + 3):  # As on a GPU, where there are three to warm up.
                way(0)
        return {name: Measured([2.0, 4.0, 12.0]) for name in ways}

    seen: list[int] = []
    monkeypatch.setattr(module, "in_turn", fake)
    monkeypatch.setattr(module, "times", lambda clocks, images: seen.append(len(clocks)))
    p = profile(tiny_model(), batch=2, repeats=3, measure=True)
    assert p.dense.seconds_per_image == 2.0
    assert seen == [3]
