"""What decides whether a pass is recorded; recording itself needs a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from actvar_cli.model import graphs
from actvar_cli.model.precision import set_dtype
from tests.tiny import tiny_model


class Played(graphs.Pass):
    """Stands for a pass from a recording, which it computes anew."""

    def __init__(self, var: Any, cond: torch.Tensor, threshold: float | None, recording: Any) -> None:
        super().__init__(var, cond, threshold)
        self.recording = recording


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The key of every recording that is made, on a CPU that passes for a GPU."""
    made: list[Any] = []

    def room(var: Any, cond: torch.Tensor, key: Any) -> graphs.Recording:
        made.append(key)
        nothing: Any = None
        return graphs.Recording(key, cond, nothing, cond, cond, nothing)

    monkeypatch.setattr(graphs, "_recordable", lambda *_: True)
    monkeypatch.setattr(graphs, "_room", room)
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
    # Three images came once, and did not cost the recording of two.
    assert len(recordings) == 2


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
