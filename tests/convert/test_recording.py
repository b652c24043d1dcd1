"""What is recorded while a model samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from actvar_cli.convert import recording
from actvar_cli.convert.convert import convert
from actvar_cli.convert.recording import Recorder, draw_samples
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
