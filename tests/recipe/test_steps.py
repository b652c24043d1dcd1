"""The steps as typed models."""

from __future__ import annotations

import dataclasses

from actvar_cli.convert.settings import ConvertSettings
from actvar_cli.model.sampling import SamplingSettings
from actvar_cli.recipe.cache import DEPENDS
from actvar_cli.recipe.steps import VERBS, ConvertStep, Drawing, Recipe, SampleSettings


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
