"""What a recipe would take."""

from __future__ import annotations

from actvar_cli.distill.settings import GuidanceStage, Stages
from actvar_cli.recipe.estimate import estimate, measured_speed, parameters, passes
from actvar_cli.recipe.steps import ConvertStep, DistillStep, ExportStep, ProfileStep
from tests.tiny import tiny_config, tiny_model


def test_parameters_are_counted_without_making_them() -> None:
    model = tiny_model()
    made = sum(p.numel() for p in [*model.transformer.parameters(), *model.tokenizer.parameters()])
    assert parameters(tiny_config()) == made


def test_more_work_takes_longer_and_less_speed_too() -> None:
    config = tiny_config()
    small, large = DistillStep(step="distill", images=64), DistillStep(step="distill", images=6400)
    assert estimate(small, config, speed=1e9).seconds < estimate(large, config, speed=1e9).seconds
    slow, fast = (estimate(small, config, speed=speed).seconds for speed in (1e9, 2e9))
    assert abs(slow - 2 * fast) < 1e-9 * slow


def test_training_takes_more_memory_than_sampling_and_only_models_take_disk() -> None:
    config, weights = tiny_config(), 4 * parameters(tiny_config())
    convert, distill, profile, export = (
        estimate(step, config, speed=1e9)
        for step in (
            ConvertStep(step="convert"),
            DistillStep(step="distill"),
            ProfileStep(step="profile"),
            ExportStep(step="export", dtype="float16"),
        )
    )
    assert distill.memory > profile.memory > weights
    assert (convert.disk, distill.disk, profile.disk, export.disk) == (weights, weights, 0, weights // 2)
    assert passes(ExportStep(step="export"), config) == 0


def test_what_the_teacher_says_takes_memory_where_it_is_kept() -> None:
    config, length, vocabulary = tiny_config(), 14, tiny_config().tokenizer.vocab_size
    learned = Stages(guidance=GuidanceStage(steps=10))
    few, many, more = (DistillStep(step="distill", images=n, stages=learned) for n in (64, 1064, 2**29))
    kept = estimate(many, config, speed=1e9).memory - estimate(few, config, speed=1e9).memory
    assert kept == 2 * 1000 * length * vocabulary
    # There is no room for all of it.
    assert estimate(more, config, speed=1e9).memory < estimate(few, config, speed=1e9).memory


def test_the_machine_has_a_speed() -> None:
    assert measured_speed("cpu", seconds=0.01) > 1e6
