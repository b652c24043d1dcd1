"""Where both rows begin, one learns to go on from what guidance makes of their keys and values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actvar_cli.convert.recording import TeacherSamples, draw_samples
from actvar_cli.distill.context_stage import begun, going_on
from actvar_cli.distill.distill import distill
from actvar_cli.distill.losses import kl_divergence
from actvar_cli.distill.settings import ContextStage, DistillSettings, ExpertsStage, GuidanceStage, Stages, TokensStage
from actvar_cli.errors import InputError
from actvar_cli.evaluate.agreement import guided_logits
from actvar_cli.model.config import EVERYTHING
from actvar_cli.model.sampling import ActVAR, SamplingSettings, Setting
from actvar_cli.model.var import VAR
from actvar_cli.progress import Progress
from tests.distill.conftest import teacher_model
from tests.distill.kill import KillAt, Killed
from tests.tiny import tiny_model


def settings(steps: int = 40, learns: str = "delta", guidance: int = 8) -> DistillSettings:
    stages = Stages(
        guidance=GuidanceStage(steps=guidance, lr=2e-2),
        experts=ExpertsStage(steps=2),
        tokens=TokensStage(steps=4, rank=4, scales=2, gate="grid"),
        context=ContextStage(steps=steps, lr=0.1),
    )
    return DistillSettings(budget=0.4, images=32, batch=8, lr=1e-3, stages=stages, learns=learns, precision="no")


@torch.no_grad()
def kl_to_guided(model: ActVAR, budget: float) -> float:
    teacher = teacher_model()
    samples = draw_samples(teacher, 64, seed=123, progress=Progress(), settings=SamplingSettings(1.5))
    model.set_budget(budget)
    theirs, ours = (guided_logits(m, samples.labels, samples.tokens, 1.5) for m in (teacher, model))
    return float(kl_divergence(theirs, ours))


@pytest.mark.parametrize("shared_aln", [False, True])
@torch.no_grad()
def test_it_is_taught_just_what_sampling_computes(shared_aln: bool) -> None:
    model = tiny_model(experts=True, guidance=True, context=True, delta=True, shared_aln=shared_aln)
    labels = torch.tensor([0, 2, 1])
    tokens = model.sample_tokens(labels, seed=1)
    batch = TeacherSamples(labels, tokens)
    teacher = ActVAR(model.config.dense, VAR(model.config.dense), model.tokenizer).eval()
    teacher.transformer.load_state_dict(model.transformer.state_dict(), strict=False)
    for scales in (1, 2):
        model.setting = Setting(EVERYTHING, scales)
        sampled = guided_logits(model, labels, tokens, 1.5)
        taught = going_on(model, batch, begun(teacher, batch, scales))
        torch.testing.assert_close(taught, sampled[:, -taught.shape[1] :], atol=2e-4, rtol=1e-4)


def test_what_both_rows_began_is_continued_with_less_divergence_and_all_else_stays(converted: ActVAR) -> None:
    without, made = (distill(teacher_model(), converted, settings(steps)) for steps in (0, 60))
    assert [h["stage"] for h in made.history[-60:]] == ["context"] * 60
    assert made.history[:-60] == without.history
    assert made.model.config.guidance and made.model.config.guidance.context
    assert made.model.config.dials == without.model.config.dials
    before, after = (m.model.transformer.state_dict() for m in (without, made))
    assert set(after) - set(before) == {"guided_context.keys", "guided_context.values"}
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    most = max(made.model.budgets())
    assert made.model.setting_for(most).paired_scales
    # A model of random weights has little to gain: attention hardly tells its tokens apart.
    assert kl_to_guided(made.model, most) < 0.98 * kl_to_guided(without.model, most)
    assert kl_to_guided(made.model, 0.4) == kl_to_guided(without.model, 0.4)


@pytest.mark.parametrize(("label", "step"), [("tokens", 3), ("context", 9)])
def test_a_killed_training_goes_on_where_it_was(
    converted: ActVAR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str, step: int
) -> None:
    monkeypatch.setattr("actvar_cli.distill.addition.CHECKPOINT_EVERY", 4)
    monkeypatch.setattr("actvar_cli.distill.distill.CHECKPOINT_EVERY", 2)
    few = settings(12).model_copy(update={"also": (0.3,)})
    whole = distill(teacher_model(), converted, few)
    checkpoint = tmp_path / "distill.safetensors"
    with pytest.raises(Killed):
        distill(teacher_model(), converted, few, checkpoint=checkpoint, progress=KillAt(label, step))
    resumed = distill(teacher_model(), converted, few, checkpoint=checkpoint)
    assert [(h["stage"], h["step"]) for h in resumed.history] == [(h["stage"], h["step"]) for h in whole.history]
    assert resumed.model.config == whole.model.config
    for key, value in whole.model.transformer.state_dict().items():
        # Where gradients are next to nothing, Adam makes of their rounding what they are themselves.
        near = 1e-3 if key.startswith("guided_context.") else 1e-6
        torch.testing.assert_close(resumed.model.transformer.state_dict()[key], value, atol=near, rtol=1e-5)


@pytest.mark.parametrize(("learns", "guidance"), [("experts", 4), ("delta", 0)])
def test_a_student_that_never_begins_with_both_rows_has_no_such_stage(
    converted: ActVAR, learns: str, guidance: int
) -> None:
    with pytest.raises(InputError, match=r"stages\.context: "):
        distill(teacher_model(), converted, settings(2, learns, guidance))
