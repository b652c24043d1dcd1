"""Which model every step works on."""

from __future__ import annotations

from pathlib import Path

import pytest

from actvar_cli.recipe.flow import Flow, Ref
from actvar_cli.recipe.read import RecipeError, read


def flow(tmp_path: Path, *steps: str) -> tuple[Flow, ...]:
    path = tmp_path / "r.yaml"
    path.write_text("version: 1\nsteps:\n" + "".join(f"  - {{{step}}}\n" for step in steps))
    return read(path).flow


def problem(tmp_path: Path, *steps: str) -> str:
    with pytest.raises(RecipeError) as caught:
        flow(tmp_path, *steps)
    return str(caught.value).replace(str(tmp_path / "r.yaml"), "r.yaml")


def test_each_step_takes_the_model_before_and_the_first_is_the_teacher(tmp_path: Path) -> None:
    source, converted, distilled = Ref("var-fashion"), Ref("convert", True), Ref("distill", True)
    steps = ["step: convert, model: var-fashion", *(f"step: {v}" for v in ("distill", "profile", "evaluate", "export"))]
    assert [(f.model, f.teacher) for f in flow(tmp_path, *steps)] == [
        (source, None),
        (converted, source),
        (distilled, None),
        (distilled, source),
        (distilled, None),
    ]


def test_a_step_can_name_an_earlier_one(tmp_path: Path) -> None:
    found = flow(
        tmp_path,
        "step: convert, model: var-fashion, name: eight, experts: 8",
        "step: convert, model: var-fashion, name: four, experts: 4",
        "step: evaluate, model: eight, against: var-fashion",
        "step: profile",
    )
    assert found[2].model == found[3].model == Ref("eight", True)
    assert found[2].teacher == Ref("var-fashion")


def test_a_distillation_alone_compares_with_its_teacher(tmp_path: Path) -> None:
    found = flow(tmp_path, "step: distill, teacher: var-fashion, student: m.safetensors", "step: evaluate")
    assert found[0] == Flow("distill", "distill", Ref("m.safetensors"), Ref("var-fashion"))
    assert found[1].teacher == Ref("var-fashion")


def test_a_model_is_compared_with_what_it_was_made_from(tmp_path: Path) -> None:
    found = flow(
        tmp_path,
        "step: profile, model: var-fashion",
        "step: convert, model: var-d16",
        "step: distill",
        "step: evaluate",
        "step: report",
    )
    assert [step.teacher for step in found[2:]] == [Ref("var-d16")] * 3


def test_a_report_shows_the_model_that_the_evaluation_compared_with_or_none(tmp_path: Path) -> None:
    two = ["step: profile, model: var-fashion", "step: profile, name: other, model: m.safetensors"]
    compared = "step: evaluate, model: m.safetensors, against: var-d16"
    assert flow(tmp_path, *two, "step: report")[-1].teacher is None
    assert flow(tmp_path, *two, compared, "step: report")[-1].teacher == Ref("var-d16")


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["step: profile"], "r.yaml:3:5: step 'profile' has no model: add 'model', or a step that makes one before it"),
        (
            ["step: distill, teacher: var-fashion"],
            "r.yaml:3:5: step 'distill' has no model: add 'student', or a step that makes one before it",
        ),
        (
            ["step: distill, student: m.safetensors"],
            "r.yaml:3:5: step 'distill' has nothing to compare with: add 'teacher'",
        ),
        (
            ["step: evaluate, model: var-fashion"],
            "r.yaml:3:5: step 'evaluate' has nothing to compare with: add 'against'",
        ),
        (
            ["step: profile, model: var-fashion", "step: profile"],
            "r.yaml:4:12: two steps are called 'profile': give one a 'name'",
        ),
        (
            ["step: profile, model: var-fashion", "step: sample, model: profile"],
            "r.yaml:4:27: step 'profile' makes no model",
        ),
        (
            ["step: export, model: var-fashion", "step: report"],
            "r.yaml:4:5: step 'report' has nothing to report: no step before it profiles or evaluates 'var-fashion'",
        ),
        (
            ["step: convert, model: var-fashion", "step: profile", "step: distill", "step: report"],
            "r.yaml:6:5: step 'report' has nothing to report: no step before it profiles or evaluates 'distill'",
        ),
        (
            ["step: convert, model: var-fashion, name: eight", "step: profile, model: eigth"],
            "r.yaml:4:28: unknown model 'eigth' (did you mean 'eight'?): `actvar ls` shows the known ones",
        ),
        (["step: profile, model: ''"], "r.yaml:3:28: names no model: `actvar ls` shows the known ones"),
        (
            ["step: sample, model: var-fashion, name: pictures"],
            "r.yaml:3:46: pictures.png is what a report leaves: give the step another 'name'",
        ),
    ],
)
def test_what_does_not_fit_together(tmp_path: Path, steps: list[str], message: str) -> None:
    assert problem(tmp_path, *steps) == message
