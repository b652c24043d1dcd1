"""What is recorded while a model samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from actvar_cli.convert import recording
from actvar_cli.convert.convert import convert
from actvar_cli.convert.recording import Recorder, TeacherSamples, draw_samples, record_blocks
from actvar_cli.convert.settings import ConvertSettings
from actvar_cli.model.block import Sampling
from actvar_cli.model.cache import KVCache
from actvar_cli.progress import Progress
from tests.tiny import tiny_model


def test_records_are_what_the_blocks_read_and_put_out() -> None:
    model = tiny_model()
    recorder = Recorder(model, 14, torch.Generator().manual_seed(0))
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def watch(block: Any, inputs: tuple[torch.Tensor, torch.Tensor, Sampling], out: torch.Tensor) -> None:
        seen.append((inputs[2].scale, inputs[1][:, 1], out))

    handle = model.transformer.stack[1].register_forward_hook(watch)
    draw_samples(model, 3, seed=0, progress=Progress(), recorder=recorder)
    handle.remove()
    record = list(recorder.records())[1]
    assert record.h.shape == record.gain.shape == (14 * 3, 32)
    scales, gains, outs = zip(*seen, strict=True)
    assert scales == (0, 1, 2)
    energies = torch.cat([out.square().sum(-1).flatten() for out in outs])
    assert torch.isin(record.energy, energies).all()
    assert all((gain == gains[0]).all(1).any() for gain in record.gain)
    assert recorder.scales.bincount().tolist()[2] > recorder.scales.bincount().tolist()[0]


@pytest.mark.parametrize(("fast", "large", "low"), [(True, 8, True), (False, 8, False), (True, 256, False)])
def test_a_large_model_samples_for_its_routers_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, fast: bool, large: int, low: bool
) -> None:
    monkeypatch.setattr(recording, "affordable_images", lambda *_: large)
    monkeypatch.setattr(recording, "fast_bf16", lambda _: fast)
    types: list[torch.dtype] = []
    extend = KVCache.extend

    def watching(*given: Any) -> Any:
        types.append(extend(*given)[0].dtype)
        return extend(*given)

    monkeypatch.setattr(KVCache, "extend", watching)
    converted = convert(tiny_model(), ConvertSettings(experts=4, images=8))
    assert (types[0] == torch.bfloat16) == low
    # What its budgets cost is measured as it will be used.
    assert types[-1] == torch.float32
    assert converted.max_logit_difference < 1e-5
    assert min(converted.router_fit) > 0.3


def test_a_few_tokens_are_of_all_scales_however_many_images_were_sampled_together() -> None:
    model = tiny_model()
    recorder = Recorder(model, 14, torch.Generator().manual_seed(0))
    draw_samples(model, 16, seed=0, progress=Progress(), recorder=recorder)
    record = next(recorder.records())
    few = record.some(32)
    place = (record.h == few.h[:, None]).all(-1).float().argmax(1)
    assert recorder.scales[place].unique().tolist() == [0, 1, 2]
    assert torch.equal(few.energy, record.energy[place]) and torch.equal(few.gain, record.gain[place])
    assert len(record.some(10**6).h) == len(record.h)


def test_rows_that_are_kept_whole_are_different_ones() -> None:
    model = tiny_model(experts=True)
    samples = draw_samples(model, 3, seed=0, progress=Progress())
    records, _ = record_blocks(
        model,
        samples,
        positions=torch.arange(14),
        per_image=None,
        threshold=0.0,
        generator=torch.Generator().manual_seed(0),
        progress=Progress(),
    )
    rows = records[0].h.unflatten(0, (-1, 14))
    assert len(rows) == 3 and len(rows.flatten(1).unique(dim=0)) == 3


@pytest.mark.parametrize(
    ("count", "classes", "expected"),
    [
        (3, 4, [0, 1, 2]),
        (20, 1000, list(range(0, 1000, 50))),
        (12, 10, [*range(10), 0, 1]),
    ],
)
def test_some_samples_are_of_classes_spread_over_all(count: int, classes: int, expected: list[int]) -> None:
    labels = torch.arange(3000) % classes
    samples = TeacherSamples(labels, torch.arange(3000)[:, None])
    assert samples.some(count).labels.tolist() == expected
    assert len(TeacherSamples(labels[:2], samples.tokens[:2]).some(count)) == 2


def test_classes_move_on() -> None:
    first, second = (draw_samples(tiny_model(), 2, seed=0, progress=Progress(), first=n).labels for n in (0, 1))
    assert first.tolist() != second.tolist()
