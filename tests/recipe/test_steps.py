"""The steps as typed models."""

from __future__ import annotations

import dataclasses

from actvar_cli.convert.settings import ConvertSettings
from actvar_cli.model.config import TokenizerConfig, TransformerConfig
from actvar_cli.model.sampling import SamplingSettings
from actvar_cli.recipe.cache import DEPENDS
from actvar_cli.recipe.steps import VERBS, ConvertStep, Drawing, ProfileStep, Recipe, SampleSettings
from tests.tiny import tiny_config


def test_tokens_are_drawn_as_the_model_does_by_default() -> None:
    ours = {**Drawing().model_dump(), "more_smooth": SampleSettings().more_smooth}
    assert ours == dataclasses.asdict(SamplingSettings())


def test_a_step_gives_its_settings() -> None:
    step = ConvertStep(step="convert", experts=4, name="four", model="var-fashion")
    assert step.settings(ConvertSettings) == ConvertSettings(experts=4)


def test_every_verb_says_which_code_its_outcome_depends_on() -> None:
    assert set(DEPENDS) == set(VERBS)


def test_the_schema_describes_every_key() -> None:
    schema = Recipe.model_json_schema()
    steps = [definition for name, definition in schema["$defs"].items() if name.endswith("Step")]
    assert len(steps) == len(VERBS)
    for step in steps:
        assert step["description"]
        for key, value in step["properties"].items():
            nested = "$ref" in value or key == "step"
            assert nested or value.get("description"), f"{step['title']}.{key}"


def test_a_large_model_is_profiled_and_calibrated_on_few_images() -> None:
    large = tiny_config().model_copy(
        update={
            "tokenizer": TokenizerConfig(),
            "transformer": TransformerConfig(depth=16, embed_dim=1024, num_heads=16),
        }
    )
    few, many = ProfileStep(step="profile"), ProfileStep(step="profile", batch=64)
    assert (few.batch_for(tiny_config()), few.batch_for(large), many.batch_for(large)) == (16, 1, 64)
    assert (ConvertSettings().images_for(tiny_config()), ConvertSettings().images_for(large)) == (256, 8)
