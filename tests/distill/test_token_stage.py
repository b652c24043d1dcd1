"""Giving a student its token gates."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from actvar_cli.convert.recording import TeacherSamples, draw_samples
from actvar_cli.distill.settings import TokensStage
from actvar_cli.distill.token_stage import (
    HANDICAP,
    Trial,
    add_token_gates,
    drop_idle_gates,
    fit_token_gates,
    saving,
    weigh_gates,
)
from actvar_cli.errors import InputError
from actvar_cli.model.config import GateKind, ReconstructionKind
from actvar_cli.model.counters import WorkCounter
from actvar_cli.model.sampling import ActVAR, rows_of
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


def test_where_every_gate_keeps_all_none_is_left() -> None:
    model = lazy_and_busy()
    model.transformer.stack[1].token_gate.shift(100.0)
    samples = draw_samples(tiny_model(), 8, seed=0, progress=Progress())
    fewer = drop_idle_gates(model, samples, threshold=0.0)
    assert fewer.config.token_gate is None
    assert not any("token_gate" in key or "reconstruction" in key for key in fewer.state_dict())


def test_all_gates_are_shifted_to_where_the_student_diverges_least() -> None:
    model = lazy_and_busy()
    biases = [block.token_gate.fc2.bias.detach() for block in model.transformer.stack]
    # By a token's own score there is one shift for all budgets: the best on the whole.
    trials = [Trial(0.0, 0.0), Trial(1.0, 0.0)]
    wanted = [50.3, 50.9]
    found = weigh_gates(
        model, lambda: [t._replace(divergence=abs(float(biases[0]) - w)) for t, w in zip(trials, wanted, strict=True)]
    )
    # As if they were more harmful than they are before a training.
    assert found == [0.5 + HANDICAP] * 2
    assert [float(bias) for bias in biases] == [50.5 + HANDICAP, -49.5 + HANDICAP]


@pytest.mark.parametrize("kind", ["grid", "static"])
@pytest.mark.parametrize("best", [(1.0, -0.5), (0.5, 0.5), (-1.0, 2.0)])
def test_a_gate_of_few_scores_skips_at_each_budget_what_is_best_there(
    best: tuple[float, float], kind: GateKind
) -> None:
    student, _ = fitted(tiny_model(experts=True), "neighbours", kind)
    gates = [block.token_gate for block in student.transformer.stack]
    offsets = torch.tensor(student.config.scale_offsets).view(-1, *[1] * (gates[0].scores.ndim - 1))
    for gate in gates:
        gate.scores.data.copy_(torch.linspace(-4, 4, gate.scores.numel()).view_as(gate.scores) - offsets)
    before = [gate.scores + offsets for gate in gates]
    thresholds = (-1.0, 1.0)

    def trials() -> list[Trial]:
        shift = float((gates[0].scores + offsets - before[0]).mean())
        return [Trial(t, abs(shift - b)) for t, b in zip(thresholds, best, strict=True)]

    found = weigh_gates(student, trials)
    # Gates cannot skip less at a higher threshold: then there is one shift, and of those that are as good the largest.
    assert found == ([2.0, 2.0] if best == (-1.0, 2.0) else [shift + HANDICAP for shift in best])
    for gate, scores in zip(gates, before, strict=True):
        for shift, threshold in zip(found, thresholds, strict=True):
            assert torch.equal(gate.scores + offsets > threshold, scores + shift > threshold)


def test_skipping_attention_alone_saves_less_than_skipping_the_block() -> None:
    saved = {}
    for skips in ("block", "attention"):
        model = add_token_gates(tiny_model(experts=True), TokensStage(rank=2, skips=skips))
        saved[skips] = saving(model.config, density=0.5)
    # The difference is what the token would have done in the router and in half of the four experts.
    assert 2 < saved["block"] - saved["attention"] < 2.5


def fitted(
    model: ActVAR, reconstruction: ReconstructionKind, gate: GateKind = "grid", kv_rank: int = 0
) -> tuple[ActVAR, tuple[float, ...]]:
    """The ``model`` with gates for attention, and which share of its updates their reconstructions explain."""
    samples = draw_samples(tiny_model(), 24, seed=0, progress=Progress())
    stage = TokensStage(rank=2, scales=2, gate=gate, reconstruction=reconstruction, kv_rank=kv_rank)
    student = add_token_gates(model, stage)
    generator = torch.Generator().manual_seed(0)
    explained = fit_token_gates(student, samples, threshold=0.0, density=0.5, generator=generator, progress=Progress())
    return student, explained


def rebuilt_and_computed(student: ActVAR, samples: TeacherSamples) -> list[torch.Tensor]:
    """What the first block puts out where all tokens that can be are skipped, with keys and values of both kinds."""
    first, outputs = student.transformer.stack[0], []
    first.token_gate.scores.fill_(-50.0)
    for first.rebuilds_kv in (True, False):
        hidden: list[torch.Tensor] = []
        rows = rows_of(student, samples.labels, samples.tokens)
        student.transformer(*rows, student.transformer.teacher_forced(0.0), hidden)
        outputs.append(hidden[0])
    return outputs


@pytest.mark.parametrize("reconstruction", ["neighbours", "low-rank"])
@torch.no_grad()
def test_keys_and_values_of_skipped_tokens_are_made_from_few_numbers(reconstruction: ReconstructionKind) -> None:
    samples = draw_samples(tiny_model(), 8, seed=5, progress=Progress())
    wrong = []
    for rank in (32, 12, 1):
        student, _ = fitted(tiny_model(experts=True), reconstruction, kv_rank=rank)
        outputs = rebuilt_and_computed(student, samples)
        wrong.append(float((outputs[0] - outputs[1]).square().sum() / outputs[1].square().sum()))
    # With as many numbers as there are channels nothing is lost, and with few most.
    assert wrong[0] < 1e-6 < 2 * wrong[1] < wrong[2]


@torch.no_grad()
def test_keys_and_values_are_fitted_to_the_weights_that_compute_them() -> None:
    samples = draw_samples(tiny_model(), 8, seed=1, progress=Progress())
    student, _ = fitted(tiny_model(experts=True, guidance=True, delta=True), "neighbours", kv_rank=32)
    outputs = rebuilt_and_computed(student, samples)
    torch.testing.assert_close(*outputs, atol=1e-3, rtol=0)


def test_a_rank_at_which_skipping_saves_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="takes as much work as it saves: choose a lower rank than 32, or a lower kv_"):
        add_token_gates(tiny_model(experts=True), TokensStage(skips="attention", rank=32, kv_rank=32))


def test_where_attention_does_the_same_to_all_a_grid_of_tokens_says_it() -> None:
    model = tiny_model(experts=True)
    for block in model.transformer.stack:
        # Without queries every token attends to all others alike.
        torch.nn.init.zeros_(block.attn.mat_qkv.weight.data[:32])
        torch.nn.init.zeros_(block.attn.q_bias)
    student, explained = fitted(model, "neighbours")
    assert min(explained) > 0.999
    for block in student.transformer.stack:
        assert bool((block.token_gate.scores[1:] < -10).all())


def test_leaving_out_three_of_four_tokens_is_never_said_to_be_cheaper_than_half() -> None:
    student, explained = fitted(tiny_model(experts=True), "neighbours+low-rank")
    for block in student.transformer.stack:
        assert bool((block.token_gate.scores[:, 1] >= block.token_gate.scores[:, 0]).all())
    # What a token is, and what those around became, together say more than either.
    assert explained[1] > max(fitted(tiny_model(experts=True), kind)[1][1] for kind in ("neighbours", "low-rank"))


@pytest.mark.parametrize("gate", ["learned", "grid", "static"])
@pytest.mark.parametrize("reconstruction", get_args(ReconstructionKind))
def test_every_kind_is_fitted(gate: GateKind, reconstruction: ReconstructionKind) -> None:
    student, explained = fitted(tiny_model(experts=True), reconstruction, gate)
    # On what it was fitted to none explains less than nothing.
    assert min(explained) > -1e-6
    assert all(torch.isfinite(p).all() for p in student.transformer.parameters())


def test_a_grid_gate_that_leaves_out_nothing_is_taken_out() -> None:
    student, _ = fitted(tiny_model(experts=True), "neighbours")
    first, second = student.transformer.stack
    first.token_gate.scores.data.fill_(50.0)
    second.token_gate.scores.data.fill_(-50.0)
    samples = draw_samples(tiny_model(), 8, seed=0, progress=Progress())
    fewer = drop_idle_gates(student, samples, threshold=0.0)
    assert fewer.config.token_gate is not None
    assert fewer.config.token_gate.blocks == (1,)


@pytest.mark.parametrize(("scales", "gated"), [(1, (2,)), (2, (1, 2)), (5, (1, 2))])
def test_gates_are_on_the_last_scales_and_never_on_the_first(scales: int, gated: tuple[int, ...]) -> None:
    made = add_token_gates(tiny_model(experts=True), TokensStage(scales=scales)).config.token_gate
    assert made is not None and made.scales == gated
