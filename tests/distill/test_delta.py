"""Distilling a student whose weights move with the threshold, and whose matrices learn by Muon."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actvar_cli.distill import distill as module
from actvar_cli.distill.distill import Distilled, distill
from actvar_cli.distill.settings import DistillSettings
from actvar_cli.errors import InputError
from actvar_cli.model.delta import HIGHEST, OTHERS
from actvar_cli.model.sampling import ActVAR
from tests.distill.conftest import teacher_model
from tests.distill.kill import KillAt, Killed
from tests.distill.test_distill import kl_to_teacher, settings


def delta_settings(steps: int = 12) -> DistillSettings:
    return settings(steps).model_copy(update={"learns": "delta", "also": (0.6,), "optimiser": "muon"})


@pytest.fixture(scope="module")
def distilled(converted: ActVAR) -> Distilled:
    return distill(teacher_model(), converted, delta_settings())


def test_the_original_stays_what_it_was(converted: ActVAR, distilled: Distilled) -> None:
    student = distilled.model
    before, after = converted.transformer.state_dict(), student.transformer.state_dict()
    names = student.transformer.delta.names
    assert {"blocks.0.attn.mat_qkv.weight", "blocks.1.ffn.fc2.bias", "blocks.0.ada_lin.1.weight"} <= set(names)
    assert all(torch.equal(before[name], after[name]) for name in names)
    assert all(after[f"delta.{name}"].any() for name in names)
    student.set_budget(1.0)
    tokens = student.sample_tokens([0, 1, 2], seed=1)
    student.set_budget(0.7)
    assert torch.equal(tokens, teacher_model().sample_tokens([0, 1, 2], seed=1))


def test_every_budget_has_a_share_of_its_own(distilled: Distilled) -> None:
    student = distilled.model
    assert student.config.delta is not None
    low, high = student.config.delta.thresholds
    dials = {dial.budget: dial.threshold for dial in student.config.dials}
    # What the higher budget is calibrated to is what was trained for, or not far from it.
    assert abs(dials[0.7] - low) < abs(dials[0.7] - high)
    assert abs(dials[0.6] - high) < abs(dials[0.6] - low)
    factors = student.transformer.delta.factors
    assert torch.allclose(factors[:, 0], torch.tensor(HIGHEST), atol=0.05)
    assert torch.allclose(factors[:, 1], torch.tensor(OTHERS), atol=0.05)
    assert factors[:, 0].unique().numel() > 1


def test_it_learns(converted: ActVAR) -> None:
    long = delta_settings().model_copy(update={"lr": 3e-3})
    stages = long.stages.model_copy(update={"experts": long.stages.experts.model_copy(update={"steps": 60})})
    stages = stages.model_copy(update={"tokens": long.stages.tokens.model_copy(update={"steps": 0})})
    student = distill(teacher_model(), converted, long.model_copy(update={"stages": stages})).model
    found = []
    for factor in (1.0, 0.0):
        with torch.no_grad():
            student.transformer.delta.factors.mul_(factor)
        student.set_budget(0.6)
        assert student.threshold is not None
        found.append(kl_to_teacher(student, student.threshold))
    assert found[0] < found[1]


@pytest.mark.parametrize("stage", ["experts", "tokens"])
def test_a_killed_training_goes_on_where_it_was(
    converted: ActVAR,
    distilled: Distilled,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_EVERY", 4)
    checkpoint = tmp_path / "distill.safetensors"
    with pytest.raises(Killed):
        distill(teacher_model(), converted, delta_settings(), checkpoint=checkpoint, progress=KillAt(stage, 9))
    resumed = distill(teacher_model(), converted, delta_settings(), checkpoint=checkpoint).model
    assert resumed.config == distilled.model.config
    for key, value in distilled.model.transformer.state_dict().items():
        torch.testing.assert_close(resumed.transformer.state_dict()[key], value, atol=1e-6, rtol=1e-5)


def test_such_a_student_can_be_distilled_further(distilled: Distilled) -> None:
    before = distilled.model.transformer.delta.factors
    # It has its token gates already.
    few = delta_settings(2)
    stages = few.stages.model_copy(update={"tokens": few.stages.tokens.model_copy(update={"steps": 0})})
    after = distill(teacher_model(), distilled.model, few.model_copy(update={"stages": stages})).model
    assert 0 < (after.transformer.delta.factors - before).abs().max() < 0.02
    wanted = r"the student tiny has a delta for 2 budgets: distil it with learns: delta and as many budgets"
    for other in (settings(), delta_settings().model_copy(update={"also": ()})):
        with pytest.raises(InputError, match=wanted):
            distill(teacher_model(), distilled.model, other)
