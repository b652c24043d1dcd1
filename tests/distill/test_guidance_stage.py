"""One row learns what guidance makes of two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from actvar_cli.convert.convert import convert
from actvar_cli.convert.recording import draw_samples
from actvar_cli.convert.settings import ConvertSettings
from actvar_cli.distill.cost import CostModel
from actvar_cli.distill.distill import distill, trials
from actvar_cli.distill.guidance_stage import learn_guidance, with_guidance
from actvar_cli.distill.losses import kl_divergence
from actvar_cli.distill.settings import DistillSettings, ExpertsStage, GuidanceStage, Stages, TokensStage
from actvar_cli.distill.token_stage import Trial
from actvar_cli.distill.training import Course
from actvar_cli.errors import InputError
from actvar_cli.evaluate.agreement import guided_logits
from actvar_cli.model.config import GuidanceConfig
from actvar_cli.model.counters import WorkCounter
from actvar_cli.model.sampling import ActVAR, SamplingSettings, paired_rows
from actvar_cli.progress import Progress
from tests.distill.conftest import teacher_model
from tests.distill.kill import KillAt, Killed


def settings(steps: int = 40, budget: float = 0.4) -> DistillSettings:
    stages = Stages(
        guidance=GuidanceStage(steps=steps, lr=2e-2),
        experts=ExpertsStage(steps=4),
        tokens=TokensStage(steps=4, rank=4, scales=2),
    )
    return DistillSettings(budget=budget, images=32, batch=8, lr=1e-3, stages=stages, precision="no")


def learned(steps: int, **kwargs: Any) -> ActVAR:
    teacher = teacher_model()
    samples = draw_samples(teacher, 32, seed=5, progress=Progress())
    return learn_guidance(Course(teacher, samples, settings(steps), **kwargs))


@torch.no_grad()
def kl_to_guided(model: ActVAR) -> float:
    teacher = teacher_model()
    samples = draw_samples(teacher, 64, seed=123, progress=Progress())
    model.threshold = -torch.inf
    theirs, ours = (guided_logits(m, samples.labels, samples.tokens, 1.5) for m in (teacher, model))
    return float(kl_divergence(theirs, ours))


def test_it_comes_closer_to_what_guidance_makes_of_both_rows() -> None:
    assert kl_to_guided(learned(60)) < 0.5 * kl_to_guided(learned(0))


def test_what_the_teacher_says_is_kept_from_when_its_samples_were_drawn() -> None:
    teacher = teacher_model()
    strong = SamplingSettings(cfg=3.0)
    samples = draw_samples(teacher, 8, seed=1, progress=Progress(), settings=strong, keep_logits=True)
    expected = guided_logits(teacher, samples.labels, samples.tokens, 3.0)
    assert samples.logits is not None
    torch.testing.assert_close(samples.logits.float(), expected, atol=5e-3, rtol=1e-3)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_distillation_without_room_for_that_is_the_same(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    student = convert(teacher_model(), ConvertSettings(experts=4, images=16)).model
    few = settings(6, 0.4).model_copy(update={"precision": precision})
    kept = distill(teacher_model(), student, few)
    calls: list[int] = []
    monkeypatch.setattr("actvar_cli.distill.data.LOGIT_BYTES", 0)
    monkeypatch.setattr("actvar_cli.distill.training.paired_rows", lambda *a: calls.append(1) or paired_rows(*a))
    computed = distill(teacher_model(), student, few)
    # And once to weigh the gates.
    assert len(calls) == 6 + 4 + 4 + 1
    near = 0.02 if precision == "no" else 0.2
    assert [h["kl"] for h in kept.history] == pytest.approx([h["kl"] for h in computed.history], rel=near)


def test_nothing_but_the_embeddings_learns() -> None:
    before, after = teacher_model().transformer.state_dict(), learned(4).transformer.state_dict()
    assert set(after) - set(before) == {"guidance.classes", "guidance.scales"}
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_a_student_computes_one_row_and_meets_a_budget_below_half() -> None:
    converted = convert(teacher_model(), ConvertSettings(experts=4, images=16)).model
    made = distill(teacher_model(), converted, settings())
    assert [h["stage"] for h in made.history] == ["guidance"] * 40 + ["experts"] * 4 + ["tokens"] * 4
    assert made.model.config.guidance
    counter = WorkCounter(made.model.config)
    made.model.sample([0, 1, 2] * 16, seed=5, counter=counter)
    assert counter.cost == pytest.approx(0.4, abs=0.02)
    assert converted.config.guidance is None
    # A second training without the stage goes on with what was learned.
    again = distill(teacher_model(), made.model, settings(0))
    assert again.model.config.guidance == made.model.config.guidance
    assert torch.equal(again.model.transformer.guidance.classes, made.model.transformer.guidance.classes)
    assert [h["stage"] for h in again.history] == ["experts"] * 4 + ["tokens"] * 4


@pytest.mark.parametrize("learns", ["delta", "experts"])
def test_above_half_a_student_that_keeps_the_original_begins_as_it_does(learns: str) -> None:
    converted = convert(teacher_model(), ConvertSettings(experts=4, images=16)).model
    made = distill(teacher_model(), converted, settings(4).model_copy(update={"learns": learns})).model
    paired = [dial for dial in made.config.dials if dial.paired_scales]
    assert bool(paired) == (learns == "delta")
    made.set_budget(0.95)
    assert (made.setting.paired_scales > 0) == (learns == "delta")
    if paired:
        first = sum(pn * pn for pn in made.config.tokenizer.patch_nums[: paired[-1].paired_scales])
        tokens, original = (model.sample_tokens([0, 1, 2], seed=3) for model in (made, teacher_model()))
        assert torch.equal(tokens[:, :first], original[:, :first])


@pytest.mark.parametrize(("label", "step"), [("guidance", 9), ("experts", 3)])
def test_a_killed_training_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str, step: int
) -> None:
    monkeypatch.setattr("actvar_cli.distill.addition.CHECKPOINT_EVERY", 4)
    monkeypatch.setattr("actvar_cli.distill.distill.CHECKPOINT_EVERY", 2)
    converted = convert(teacher_model(), ConvertSettings(experts=4, images=16)).model
    whole = distill(teacher_model(), converted, settings(12))
    checkpoint = tmp_path / "distill.safetensors"
    with pytest.raises(Killed):
        distill(teacher_model(), converted, settings(12), checkpoint=checkpoint, progress=KillAt(label, step))
    resumed = distill(teacher_model(), converted, settings(12), checkpoint=checkpoint)
    assert [(h["stage"], h["step"]) for h in resumed.history] == [(h["stage"], h["step"]) for h in whole.history]
    for key, value in whole.model.transformer.state_dict().items():
        torch.testing.assert_close(resumed.model.transformer.state_dict()[key], value, atol=1e-6, rtol=1e-5)


def test_a_budget_above_half_is_refused() -> None:
    converted = convert(teacher_model(), ConvertSettings(experts=4, images=16)).model
    with pytest.raises(InputError, match=r"a budget of 0\.9 saves nothing: with all experts on, the cost is 0\.5"):
        distill(teacher_model(), converted, settings(2, budget=0.9))


def test_a_budget_that_one_row_costs_is_trained_as_it_is_used() -> None:
    converted = convert(teacher_model(), ConvertSettings(experts=4, images=16)).model
    one_row = with_guidance(converted, GuidanceConfig(cfg=1.5))
    cost = CostModel(one_row.config, one_row.device)
    budget = round(cost.whole(), 4)
    assert cost.whole() < cost.most()
    stages = Stages(guidance=GuidanceStage(steps=2), experts=ExpertsStage(steps=6), tokens=TokensStage(steps=0))
    for learns in ("blocks", "delta"):
        done = distill(
            teacher_model(),
            converted,
            settings(budget=budget).model_copy(update={"stages": stages, "learns": learns, "also": (0.4,)}),
        )
        costs = [entry["cost"] for entry in done.history if entry.get("budget") == budget]
        assert costs and costs == [pytest.approx(cost.whole())] * len(costs)
        done.model.set_budget(budget)
        counter = WorkCounter(done.model.config)
        done.model.sample_tokens([0, 1], seed=0, counter=counter)
        assert counter.cost == pytest.approx(cost.whole(), rel=1e-3)


def test_gates_are_weighed_at_budgets_that_leave_something_out(monkeypatch: pytest.MonkeyPatch) -> None:
    converted = convert(teacher_model(), ConvertSettings(experts=4, images=16)).model
    one_row = with_guidance(converted, GuidanceConfig(cfg=1.5))
    budget = round(CostModel(one_row.config, one_row.device).whole(), 4)
    asked = []

    def watched(*args: Any) -> list[Trial]:
        asked.append(list(args[-1]))
        return trials(*args)

    monkeypatch.setattr("actvar_cli.distill.distill.trials", watched)
    stages = Stages(
        guidance=GuidanceStage(steps=2),
        experts=ExpertsStage(steps=0),
        tokens=TokensStage(steps=2, gate="grid", scales=2, rank=2, reconstruction="neighbours"),
    )
    for also, weighed in (((0.4, 0.35), [0.4, 0.35]), ((), [budget])):
        update = {"stages": stages, "also": also}
        distill(teacher_model(), converted, settings(budget=budget).model_copy(update=update))
        assert asked and all(budgets == weighed for budgets in asked)
        asked.clear()
