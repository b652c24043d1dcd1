"""What decides whether a pass is recorded; recording itself needs a GPU."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

from actvar_cli.model import graphs
from actvar_cli.model.precision import set_dtype
from actvar_cli.model.sampling import Setting
from tests.tiny import tiny_model


class Played(graphs.Pass):
    """Stands for a pass from a recording, which it computes anew."""

    def __init__(
        self, var: Any, cond: torch.Tensor, threshold: float | None, recording: Any, after: graphs.Pass | None = None
    ) -> None:
        super().__init__(var, cond, threshold, after=after)
        recording.player = weakref.ref(self)


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The rows of every recording that is made, on a CPU that passes for a GPU."""
    made: list[Any] = []

    def room(var: Any, cond: torch.Tensor) -> graphs.Recording:
        made.append(len(cond))
        nothing: Any = None
        return graphs.Recording(cond, nothing, cond, cond, nothing)

    monkeypatch.setattr(graphs, "_recordable", lambda *_: True)
    monkeypatch.setattr(graphs, "_room", room)
    monkeypatch.setattr(graphs, "_has_room", lambda *_: True)
    monkeypatch.setattr(graphs, "RecordedPass", Played)
    return made


def sample(model: Any, images: int = 2) -> torch.Tensor:
    made: torch.Tensor = model.sample_tokens([0, 1, 2][:images], seed=1)
    return made


def test_the_second_pass_is_recorded_and_later_ones_play_it(recordings: list[Any]) -> None:
    model = tiny_model()
    first = sample(model)
    assert not recordings
    assert all(torch.equal(sample(model), first) for _ in range(3))
    assert len(recordings) == 1


def test_another_batch_size_or_threshold_is_another_pass(recordings: list[Any]) -> None:
    model = tiny_model(experts=True)
    for images, threshold in ((2, 0.0), (2, 0.0), (3, 0.0), (2, 0.0), (2, 0.1), (2, 0.1), (2, 0.1)):
        model.threshold = threshold
        sample(model, images)
    # Three images came once, and were not recorded.
    assert len(recordings) == 2


@pytest.mark.parametrize(("most", "expected"), [(2, 2), (1, 6), (0, 0)])
def test_two_thresholds_in_turn_are_both_kept_while_there_is_room(
    most: int, expected: int, recordings: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_has_room", lambda var, _: len(graphs._passes[var].recordings) < most)
    model = tiny_model(experts=True)
    for threshold in (None, 0.0) * 3:
        model.threshold = threshold
        sample(model), sample(model)
    assert len(recordings) == expected
    model.threshold = 0.3
    sample(model), sample(model)
    assert len(graphs._passes[model.transformer].recordings) == most


def test_two_passes_of_one_sampling_are_both_recorded(recordings: list[Any]) -> None:
    model = tiny_model(experts=True, guidance=True)
    model.setting = Setting(0.0, 2)
    first = sample(model)
    assert not recordings
    assert all(torch.equal(sample(model), first) for _ in range(3))
    # Both rows of the first scales, and one of the last.
    assert recordings == [4, 2]


def test_a_pass_beside_another_does_without_its_recording(recordings: list[Any]) -> None:
    model = tiny_model()
    sample(model), sample(model)
    with torch.inference_mode():
        cond = model.transformer.class_emb(torch.tensor([0, 1, 3, 3]))
        first, second = (graphs.begin(model.transformer, cond, None) for _ in range(2))
        assert isinstance(first, Played) and not isinstance(second, Played)
        del first
        assert isinstance(graphs.begin(model.transformer, cond, None), Played)


@pytest.mark.parametrize("change", ["dtype", "module", "parameter"])
def test_a_changed_model_is_recorded_anew(change: str, recordings: list[Any]) -> None:
    model = tiny_model(experts=True)
    sample(model), sample(model)
    assert len(recordings) == 1
    block = model.transformer.stack[1]
    if change == "dtype":
        set_dtype(model, "bfloat16")
    elif change == "module":
        block.ffn = tiny_model(experts=True, seed=1).transformer.stack[1].ffn
    else:
        block.attn.q_bias = torch.nn.Parameter(torch.ones(32))
    sample(model)
    assert len(recordings) == 1
    sample(model)
    assert len(recordings) == 2


def test_weights_that_move_are_recorded_at_each_threshold_and_anew_when_they_change(recordings: list[Any]) -> None:
    model = tiny_model(experts=True, delta=True)
    for threshold in (None, 0.5) * 3:
        model.threshold = threshold
        sample(model), sample(model)
    assert len(recordings) == 2
    with torch.no_grad():
        model.transformer.delta.factors.mul_(2)
    sample(model), sample(model)
    assert len(recordings) == 3


def test_nothing_is_played_while_somebody_watches(recordings: list[Any]) -> None:
    model, seen = tiny_model(), []
    sample(model), sample(model)
    model.transformer.stack[0].attn.register_forward_hook(lambda *_: seen.append(1))
    sample(model)
    assert len(recordings) == 1 and len(seen) == 3


def test_a_recording_goes_with_its_model(recordings: list[Any]) -> None:
    model = tiny_model()
    sample(model), sample(model)
    held = len(graphs._passes)
    del model
    assert len(graphs._passes) == held - 1


def test_a_cpu_records_nothing() -> None:
    model = tiny_model()
    for _ in range(3):
        sample(model)
    assert model.transformer not in graphs._passes
