"""Distilling a converted model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from actvar_cli.convert.calibration import measured_cost
from actvar_cli.convert.convert import convert
from actvar_cli.convert.recording import TeacherSamples, draw_samples
from actvar_cli.convert.settings import ConvertSettings
from actvar_cli.distill import distill as module
from actvar_cli.distill import training as training_module
from actvar_cli.distill.distill import Distilled, distill
from actvar_cli.distill.losses import cost_excess, kl_divergence
from actvar_cli.distill.settings import DistillSettings, ExpertsStage, LossWeights, Stages, TokensStage
from actvar_cli.distill.training import Sequences, budget_weight, turns
from actvar_cli.errors import InputError
from actvar_cli.model.config import GateKind, GuidanceConfig, ReconstructionKind
from actvar_cli.model.sampling import ActVAR, SamplingSettings, paired_rows
from actvar_cli.progress import Progress
from tests.distill.conftest import teacher_model
from tests.distill.kill import KillAt, Killed
from tests.tiny import tiny_model


def settings(steps: int = 12, budget: float = 0.7) -> DistillSettings:
    stages = Stages(experts=ExpertsStage(steps=steps), tokens=TokensStage(steps=steps, rank=4, scales=2))
    return DistillSettings(budget=budget, images=32, batch=8, lr=1e-3, stages=stages, precision="no")


@pytest.fixture(scope="module")
def distilled(converted: ActVAR) -> Distilled:
    return distill(teacher_model(), converted, settings())


@torch.no_grad()
def kl_to_teacher(model: ActVAR, threshold: float) -> float:
    teacher = teacher_model()
    samples = draw_samples(teacher, 64, seed=123, progress=Progress())
    rows, var_input = paired_rows(teacher, samples.labels, samples.tokens)
    context = model.transformer.teacher_forced(threshold)
    return float(kl_divergence(teacher.transformer(rows, var_input), model.transformer(rows, var_input, context)))


def test_a_budget_that_experts_alone_cannot_meet_is_refused_before_the_training(converted: ActVAR) -> None:
    stages = Stages(experts=ExpertsStage(steps=12), tokens=TokensStage(steps=0))
    alone = settings(budget=0.2).model_copy(update={"stages": stages})
    with pytest.raises(
        InputError, match=r"0\.2 cannot be met by experts alone: they come to 0\.[3-6]\d\d at the least;"
    ):
        distill(teacher_model(), converted, alone)


def test_the_budget_is_met_on_real_sampling(distilled: Distilled) -> None:
    model = distilled.model
    assert model.config.default_budget == 0.7
    assert model.threshold is not None
    assert measured_cost(model, model.threshold, images=48, seed=5) == pytest.approx(0.7, abs=0.04)


def test_both_stages_leave_a_history(distilled: Distilled) -> None:
    assert [h["stage"] for h in distilled.history] == ["experts"] * 12 + ["tokens"] * 12
    assert {"loss", "kl", "hidden", "cost", "budget", "grad_norm"} <= set(distilled.history[0])


def test_tokens_are_skipped(distilled: Distilled) -> None:
    from actvar_cli.model.counters import WorkCounter

    counter = WorkCounter(distilled.model.config)
    distilled.model.sample([0, 1, 2] * 4, seed=0, counter=counter)
    assert min(min(row) for row in counter.density("tokens")) < 0.95


def test_distillation_brings_the_student_closer(converted: ActVAR) -> None:
    long = settings(steps=60, budget=0.6)
    long = long.model_copy(update={"stages": Stages(experts=ExpertsStage(steps=60), tokens=TokensStage(steps=0))})
    after = distill(teacher_model(), converted, long).model
    before = next(d.threshold for d in converted.config.dials if d.budget == 0.6)
    assert after.threshold is not None
    assert kl_to_teacher(after, after.threshold) < kl_to_teacher(converted, before)


def test_only_what_is_ours_learns(converted: ActVAR, distilled: Distilled) -> None:
    old, new = converted.transformer.state_dict(), distilled.model.transformer.state_dict()
    changed = {k for k in old if not torch.equal(old[k], new[k])}
    assert changed
    assert all(".ffn." in k or ".router." in k for k in changed), changed
    assert all(torch.equal(v, teacher_model().transformer.state_dict()[k]) for k, v in new.items() if ".attn." in k)


@pytest.mark.parametrize("stage", ["experts", "tokens"])
def test_a_killed_training_goes_on_where_it_was(
    converted: ActVAR, distilled: Distilled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_EVERY", 4)
    checkpoint = tmp_path / "distill.safetensors"
    with pytest.raises(Killed):
        distill(teacher_model(), converted, settings(), checkpoint=checkpoint, progress=KillAt(stage, 9))
    resumed = distill(teacher_model(), converted, settings(), checkpoint=checkpoint)
    assert [h["step"] for h in resumed.history] == [h["step"] for h in distilled.history]
    for key, value in distilled.model.transformer.state_dict().items():
        torch.testing.assert_close(resumed.model.transformer.state_dict()[key], value, atol=1e-6, rtol=1e-5)
    # The student is saved nowhere yet: what would bring it back stays.
    assert checkpoint.exists()


def test_models_that_do_not_go_together_are_refused(converted: ActVAR) -> None:
    with pytest.raises(InputError, match="the student tiny has no experts: convert it first"):
        distill(teacher_model(), teacher_model(), settings())
    with pytest.raises(InputError, match="the teacher tiny is not an original model"):
        distill(converted, converted, settings())
    with pytest.raises(InputError, match="teacher and student have different architectures"):
        distill(tiny_model(shared_aln=True), converted, settings())


def test_a_student_can_learn_from_its_own_sequences(converted: ActVAR) -> None:
    samples = draw_samples(teacher_model(), 32, seed=3, progress=Progress())
    sequences = Sequences(samples, converted, 0.5, 8, [converted.config.dials[0].threshold])
    sequences.renew(0)
    assert sequences.drawn is not None
    half, other = sequences.batch(1)
    theirs = {tuple(row) for row in samples.tokens.tolist()}
    own = {tuple(row) for row in sequences.drawn.tokens.tolist()}
    assert (len(half), len(other)) == (4, 4)
    assert all(tuple(row) in theirs for row in half.tokens.tolist())
    assert all(tuple(row) in own for row in other.tokens.tolist())


def test_a_budget_at_which_next_to_nothing_is_left_out_comes_seldom_in_a_short_training() -> None:
    order = turns([0.4, 0.5, 0.3], most=0.51, steps=500)
    assert order[:4] == [0, 2, 0, 2] and order.count(0) == order.count(2) == 4 * order.count(1) == 4
    for most in (math.inf, 0.6):
        assert turns([0.5, 0.4, 0.3], most, steps=500)[:6] == [0, 1, 2, 0, 1, 2]
    assert turns([0.5], most=0.51, steps=500) == [0]
    assert turns([0.4, 0.5, 0.3], most=0.51, steps=10_000) == [0, 2, 1]


def test_no_budget_is_forgotten_for_the_one_that_errs_most() -> None:
    def entry(stage: str, budget: float, kl: float) -> dict[str, Any]:
        return {"stage": stage, "budget": budget, "kl": kl}

    assert budget_weight(0.5, [], "tokens", 2) == 1
    assert budget_weight(0.5, [entry("experts", 0.5, 1.0)], "tokens", 2) == 1
    history = [entry("tokens", b, kl) for _ in range(40) for b, kl in ((0.5, 0.01), (0.3, 0.16))]
    high, low = (budget_weight(budget, history, "tokens", 2) for budget in (0.5, 0.3))
    assert high == pytest.approx(4 * low)
    assert budget_weight(0.5, [entry("tokens", 0.5, 0.01), entry("tokens", 0.5, math.nan)], "tokens", 1) == 1


def test_routers_can_be_left_as_they_were_fitted(converted: ActVAR) -> None:
    before = converted.transformer.state_dict()
    after = distill(teacher_model(), converted, settings(steps=2).model_copy(update={"router_lr": 0})).model
    changed = {k for k, v in after.transformer.state_dict().items() if k in before and not torch.equal(v, before[k])}
    assert changed
    assert not any(".router." in k for k in changed)


def test_all_of_a_block_can_learn(converted: ActVAR) -> None:
    few = settings(steps=2).model_copy(update={"learns": "blocks"})
    before, after = converted.transformer, distill(teacher_model(), converted, few).model.transformer
    assert not torch.equal(before.blocks[0].attn.mat_qkv.weight, after.blocks[0].attn.mat_qkv.weight)
    assert torch.equal(before.head.weight, after.head.weight)


def test_attention_can_be_left_as_it_was(converted: ActVAR) -> None:
    few = settings(steps=2).model_copy(update={"learns": "blocks", "attention_lr": 0})
    before, after = converted.transformer, distill(teacher_model(), converted, few).model.transformer
    assert torch.equal(before.blocks[0].attn.mat_qkv.weight, after.blocks[0].attn.mat_qkv.weight)
    assert not torch.equal(before.blocks[0].ffn.fc1.weight, after.blocks[0].ffn.fc1.weight)


@pytest.mark.parametrize(
    ("gate", "reconstruction"),
    [("static", "low-rank"), ("position", "previous+low-rank"), ("grid", "neighbours+low-rank")],
)
def test_other_kinds_of_gates_reach_a_budget_too(gate: GateKind, reconstruction: ReconstructionKind) -> None:
    student = convert(teacher_model(), ConvertSettings(experts=4, images=16, router="none")).model
    few = settings(steps=2, budget=0.8)
    changed = {"gate": gate, "reconstruction": reconstruction, "skips": "block"}
    tokens = few.stages.tokens.model_copy(update=changed)
    few = few.model_copy(update={"stages": few.stages.model_copy(update={"tokens": tokens})})
    model = distill(teacher_model(), student, few).model
    assert model.config.token_gate is not None
    assert (model.config.token_gate.kind, model.config.token_gate.reconstruction) == (gate, reconstruction)
    # Whole blocks are coarse steps.
    assert measured_cost(model, model.threshold, images=12, seed=5) == pytest.approx(0.8, abs=0.06)


def test_without_a_router_experts_alone_save_nothing() -> None:
    student = convert(teacher_model(), ConvertSettings(experts=4, images=16, router="none")).model
    with pytest.raises(InputError, match=r"0\.7 cannot be met by experts alone: they come to 1\.0"):
        few = settings()
        none = few.stages.model_copy(update={"tokens": few.stages.tokens.model_copy(update={"steps": 0})})
        distill(teacher_model(), student, few.model_copy(update={"stages": none}))


def test_token_gates_give_way_to_those_of_another_shape(
    distilled: Distilled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = settings()
    other = few.stages.model_copy(update={"tokens": few.stages.tokens.model_copy(update={"rank": 2})})
    few = few.model_copy(update={"stages": other})
    made = distill(teacher_model(), distilled.model, few).model
    before = distilled.model.config.token_gate
    assert made.config.token_gate
    assert before
    assert (before.rank, made.config.token_gate.rank) == (4, 2)
    monkeypatch.setattr(module, "CHECKPOINT_EVERY", 4)
    checkpoint = tmp_path / "distill.safetensors"
    with pytest.raises(Killed):
        distill(teacher_model(), distilled.model, few, checkpoint=checkpoint, progress=KillAt("tokens", 9))
    resumed = distill(teacher_model(), distilled.model, few, checkpoint=checkpoint).model.transformer.state_dict()
    for key, value in made.transformer.state_dict().items():
        torch.testing.assert_close(resumed[key], value, atol=1e-6, rtol=1e-5)


def test_own_sequences_are_drawn_as_the_student_is_taught(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[TeacherSamples] = []

    def watch(model: ActVAR, count: int, **more: Any) -> TeacherSamples:
        drawn.append(draw_samples(model, count, **more))
        return drawn[-1]

    monkeypatch.setattr(training_module, "draw_samples", watch)
    student = tiny_model(experts=True, guidance=True)
    student.config = student.config.model_copy(update={"guidance": GuidanceConfig(cfg=4.0)})
    samples = draw_samples(tiny_model(), 4, seed=0, progress=Progress())
    sequences = Sequences(samples, student, 0.03, 4, [0.0])
    for seed in (5, 6):
        sequences.renew(seed)
    student.threshold = 0.0
    for seed, made in zip((5, 6), drawn, strict=True):
        strong = draw_samples(
            student, len(made), seed=seed, progress=Progress(), settings=SamplingSettings(4.0), first=seed
        )
        assert torch.equal(made.labels, strong.labels)
        assert torch.equal(made.tokens, strong.tokens)
    assert [len(part) for part in sequences.batch(0)] == [3, 1]


def test_routers_and_what_stands_in_learn_too(converted: ActVAR, distilled: Distilled) -> None:
    unlearned = distill(teacher_model(), converted, settings().model_copy(update={"lr": 1e-12})).model
    before, after = unlearned.transformer.state_dict(), distilled.model.transformer.state_dict()
    for part in (".router.", "reconstruction.", ".ffn."):
        assert any(not torch.allclose(before[k], after[k], atol=1e-5) for k in after if part in k and k in before), part


def test_the_loss_is_what_is_said(converted: ActVAR, monkeypatch: pytest.MonkeyPatch) -> None:
    learns: list[tuple[bool, bool]] = []

    def watch(logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        learns.append((logits.requires_grad, target.requires_grad))
        return kl_divergence(logits, target, weights)

    monkeypatch.setattr(module, "kl_divergence", watch)
    weights = LossWeights(hidden=0.25, cost=7.0)
    history = distill(teacher_model(), converted, settings(4).model_copy(update={"weights": weights})).history
    for entry in history:
        excess = float(cost_excess(torch.tensor(entry["cost"]), entry["budget"]))
        assert entry["loss"] == pytest.approx(entry["kl"] + 0.25 * entry["hidden"] + 7.0 * excess, rel=1e-4)
        assert min(entry["kl"], entry["hidden"]) > 0
    # The teacher against the student, and not the other way round.
    assert (True, False) in learns and (False, True) not in learns


def test_experts_stop_at_a_higher_cost_where_gates_are_to_come(distilled: Distilled) -> None:
    budgets = {entry["stage"]: entry["budget"] for entry in distilled.history}
    assert budgets["tokens"] == 0.7 < budgets["experts"] < 1
