"""Every kind of token gate and reconstruction does the same when sampling as it does teacher-forced."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from actvar_cli.distill.cost import CostModel
from actvar_cli.evaluate.agreement import guided_logits
from actvar_cli.model.config import GateKind, ReconstructionKind, SkippedPart, TokenGateConfig
from actvar_cli.model.counters import WorkCounter, exactly
from actvar_cli.model.rebuild import rebuilt
from actvar_cli.model.sampling import ActVAR, SamplingSettings, paired_rows
from actvar_cli.model.token_gate import DeviationGate, grid_order, previous_updates
from tests.tiny import tiny_model


def gated(
    kind: GateKind = "learned",
    reconstruction: ReconstructionKind = "low-rank",
    skips: SkippedPart = "block",
    kv_rank: int = 0,
) -> ActVAR:
    model = tiny_model(experts=True)
    gate = TokenGateConfig(
        scales=(1, 2), gate_dim=4, rank=4, kv_rank=kv_rank, kind=kind, skips=skips, reconstruction=reconstruction
    )
    model = rebuilt(model, model.config.model_copy(update={"token_gate": gate}))
    torch.manual_seed(1)
    for name, parameter in model.transformer.named_parameters():
        if "token_gate" in name or "reconstruction" in name:
            torch.nn.init.normal_(parameter, std=0.5)
        if name.endswith("token_gate.scores"):
            # On the last scale the block is left out, before it is not.
            per_scale = torch.tensor([0.0, 1.0, -1.0])
            parameter.data.copy_(per_scale if parameter.dim() == 1 else per_scale[:, None])
    model.threshold = 0.0
    return model


@pytest.mark.parametrize("kv_rank", [0, 3])
@pytest.mark.parametrize("skips", get_args(SkippedPart))
@pytest.mark.parametrize("reconstruction", get_args(ReconstructionKind))
@pytest.mark.parametrize("kind", get_args(GateKind))
def test_sampling_is_what_was_trained(
    kind: GateKind, reconstruction: ReconstructionKind, skips: SkippedPart, kv_rank: int
) -> None:
    model = gated(kind, reconstruction, skips, kv_rank)
    counter = WorkCounter(model.config)
    labels = torch.arange(24) % 3
    tokens = model.sample_tokens(labels, seed=0, settings=SamplingSettings(top_k=1), counter=counter)
    with torch.no_grad():
        # The most likely token at every place is the one that was taken.
        assert torch.equal(guided_logits(model, labels, tokens, 1.5).argmax(-1), tokens)
        context = model.transformer.teacher_forced(model.threshold)
        model.transformer(*paired_rows(model, labels, tokens), context)
    assert float(CostModel(model.config, model.device)(context.decisions)) == pytest.approx(counter.cost, rel=1e-5)
    with exactly():
        # Where work is counted tokens are gone through one by one, whatever the gate.
        assert torch.equal(model.sample_tokens(labels, seed=0, settings=SamplingSettings(top_k=1)), tokens)
    shares = torch.tensor(counter.density("tokens"))[:, 1:]
    assert bool((shares < 1).any())


def test_a_static_gate_decides_by_scale_alone() -> None:
    counter = WorkCounter(gated("static").config)
    gated("static").sample_tokens([0, 1, 2], seed=0, counter=counter)
    assert {share for row in counter.density("tokens") for share in row} == {0.0, 1.0}


def test_by_deviation_the_tokens_that_stay_are_those_unlike_the_rest() -> None:
    gate = DeviationGate((1, 2, 3))
    h = torch.randn(2, 9, 8) * 0.1 + 5
    h[0, 3] += 3
    h[1, 7] -= 3
    assert gate(h, 2).argmax(1).tolist() == [3, 7]
    # In a whole sequence every scale has a mean of its own.
    sequence = torch.cat((torch.zeros(2, 5, 8), h), dim=1)
    torch.testing.assert_close(gate(sequence, torch.tensor([0] + 4 * [1] + 9 * [2]))[:, 5:], gate(h, 2))


def test_positions_that_stay_are_spread_evenly() -> None:
    order = grid_order(8, torch.device("cpu")).view(8, 8)
    kept = order > order.median()
    assert kept.sum(0).tolist() == kept.sum(1).tolist() == [4] * 8


def test_the_update_before_is_that_of_the_nearest_token() -> None:
    update = torch.arange(1 + 4 + 16.0).view(1, -1, 1)
    made = previous_updates(update, (1, 2, 4))[0, :, 0].tolist()
    assert made[:5] == [0, 0, 0, 0, 0]
    assert made[5:13] == [1, 1, 2, 2, 1, 1, 2, 2]
    assert made[13:] == [3, 3, 4, 4, 3, 3, 4, 4]


def test_where_attention_alone_is_skipped_the_ffn_sees_every_token() -> None:
    model = gated(skips="attention")
    model.threshold = 1000.0
    before, counter = WorkCounter(model.config), WorkCounter(model.config)
    model.sample_tokens([0, 1, 2], seed=0, counter=counter)
    assert counter.density("tokens") == [[1, 0, 0]] * 2
    whole = gated()
    whole.threshold = 1000.0
    whole.sample_tokens([0, 1, 2], seed=0, counter=before)
    routed = {part: counter.by_part()[part] / before.by_part()[part] for part in ("router", "attention")}
    # Of 14 tokens, 13 can be skipped.
    assert routed == {"router": pytest.approx(14), "attention": 1}
