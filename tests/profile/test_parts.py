from __future__ import annotations

from typing import Any

import pytest

from actvar_cli.model import graphs
from actvar_cli.model.config import EVERYTHING, GuidanceConfig
from actvar_cli.model.rebuild import rebuilt
from actvar_cli.model.sampling import Setting
from actvar_cli.profile.parts import Clock, times
from actvar_cli.profile.profile import profile
from tests.tiny import tiny_model


def test_parts_and_scales_add_up_to_the_sampling() -> None:
    model = tiny_model(experts=True, token_gate=True)
    model.threshold = 0.0
    clock = Clock(model)
    with clock.watching():
        model.sample([0, 1], seed=0)
    assert set(clock.parts) == {
        *("embed", "adaln", "attention", "ffn", "router", "token_gate", "reconstruction", "head", "tokenizer", "rest")
    }
    assert len(clock.scales) == len(model.config.tokenizer.patch_nums)
    assert min(clock.parts.values()) > 0 and min(clock.scales) > 0
    # Decoding belongs to no scale.
    whole = sum(clock.parts.values())
    assert sum(clock.scales) + clock.parts["tokenizer"] <= whole
    assert times([clock], 2).parts["ffn"] == pytest.approx(clock.parts["ffn"] / 2)


def test_every_module_of_a_part_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(experts=True)
    model.threshold = 0.0
    clock, ticks = Clock(model), iter(range(10_000))
    # A clock that moves on by one whenever it is looked at: every call of a part takes one.
    monkeypatch.setattr(clock, "_now", lambda: float(next(ticks)))
    with clock.watching():
        model.sample([0, 1], seed=0)
    scales, depth = len(model.config.tokenizer.patch_nums), model.config.transformer.depth
    assert clock.parts["ffn"] == clock.parts["router"] == scales * depth
    # The head has an AdaLN of its own. Where decoding begins, the last scale ends.
    assert clock.parts["head"] == 2 * scales and clock.parts["tokenizer"] == 2


def test_what_begins_one_row_is_of_the_scale_that_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(experts=True)
    model.configure(guidance=GuidanceConfig(cfg=1.5))
    model = rebuilt(model, model.config).eval()
    last = len(model.config.tokenizer.patch_nums) - 1
    model.setting = Setting(EVERYTHING, last)
    clock = Clock(model)
    begun: list[int] = []
    begin = graphs.begin

    def watched(*arguments: Any) -> graphs.Pass:
        begun.append(len(clock.scales))
        return begin(*arguments)

    monkeypatch.setattr(graphs, "begin", watched)
    with clock.watching():
        model.sample([0, 1], seed=0)
    assert begun == [0, last]


def test_nothing_stays_behind() -> None:
    model = tiny_model()
    with Clock(model).watching():
        model.sample([0], seed=0)
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_a_profile_has_it_only_if_asked() -> None:
    model = tiny_model(experts=True)
    model.threshold = 0.0
    plain, measured = (profile(model, batch=2, repeats=1, measure=measure) for measure in (False, True))
    assert plain.dense.times is None and plain.compressed is not None and plain.compressed.times is None
    assert measured.compressed is not None and measured.compressed.times is not None
    assert "router" in measured.compressed.times.parts
    assert measured.dense.times is not None and "router" not in measured.dense.times.parts
