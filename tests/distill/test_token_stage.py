"""Giving a student its token gates."""

from __future__ import annotations

import torch

from actvar_cli.convert.recording import draw_samples
from actvar_cli.distill.token_stage import drop_idle_gates
from actvar_cli.model.counters import WorkCounter
from actvar_cli.model.sampling import ActVAR
from actvar_cli.progress import Progress
from tests.tiny import tiny_model


def lazy_and_busy() -> ActVAR:
    """A model whose first block's gate keeps all tokens at threshold 0, and whose second keeps none."""
    model = tiny_model(experts=True, token_gate=True)
    first, second = model.transformer.stack
    torch.nn.init.constant_(first.token_gate.fc2.bias, 50.0)
    torch.nn.init.constant_(second.token_gate.fc2.bias, -50.0)
    model.threshold = 0.0
    return model


def test_a_gate_that_keeps_all_is_taken_out_and_changes_nothing() -> None:
    model = lazy_and_busy()
    samples = draw_samples(tiny_model(), 8, seed=0, progress=Progress())
    fewer = drop_idle_gates(model, samples, threshold=0.0)
    assert fewer.config.token_gate is not None
    assert fewer.config.token_gate.blocks == (1,)
    assert not any("blocks.0.token_gate" in key for key in fewer.state_dict())
    before, after = WorkCounter(model.config), WorkCounter(fewer.config)
    expected = model.sample([0, 1, 2], seed=0, counter=before).images
    torch.testing.assert_close(fewer.sample([0, 1, 2], seed=0, counter=after).images, expected)
    assert after.by_part()["token_gate"] == before.by_part()["token_gate"] / 2
    assert after.density("tokens") == before.density("tokens")
