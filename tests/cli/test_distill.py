"""actvar distill."""

from __future__ import annotations

from pathlib import Path

import pytest

import actvar_cli
from actvar_cli.errors import ActvarError
from actvar_cli.weights import artefact
from actvar_cli.weights.artefact import read_config
from tests.cli.conftest import Actvar

STEP = """\
version: 1
name: lesson
steps:
  - step: distill
    teacher: {dense}
    student: {student}
    budget: 0.7
    images: 16
    batch: 4
    precision: 'no'
    stages: {{experts: {{steps: 2}}, tokens: {{steps: 2, rank: 4, scales: 2}}}}
"""


@pytest.fixture
def recipe(actvar: Actvar, models: Path, tmp_path: Path) -> Path:
    dense = models / "dense.safetensors"
    assert actvar("convert", dense, "--experts", 4, "--images", 16, "-o", "student.safetensors", "-q").code == 0
    path = tmp_path / "lesson.yaml"
    path.write_text(STEP.format(dense=dense, student="student.safetensors"))
    return path


def test_it_teaches_the_student_that_the_recipe_names(actvar: Actvar, recipe: Path, tmp_path: Path) -> None:
    done = actvar("distill", recipe, "--json")
    assert done.code == 0
    assert done.json["path"] == "lesson.safetensors"
    assert done.json["optimiser_steps"] == 4
    config = read_config("lesson.safetensors")
    assert config.token_gate is not None and config.default_budget == 0.7
    assert actvar_cli.load("lesson.safetensors").sample([0], seed=0).images.shape == (1, 1, 6, 6)
    assert not [p.name for p in tmp_path.iterdir() if "checkpoint" in p.name]
    # The same again would replace it.
    done = actvar("distill", recipe)
    assert (done.code, done.err) == (
        2,
        "error: lesson.safetensors exists: choose another name, or replace it with --force\n",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "version: 1\nsteps:\n  - step: distill\n    teacher: var-fashion\n",
            "r.yaml:3:5: step 'distill' has no model: add 'student', or a step that makes one before it",
        ),
        (
            "version: 1\nsteps:\n  - {step: convert, model: var-fashion}\n  - step: distill\n",
            "r.yaml:4:5: step 'distill' names no student: add 'student: FILE' (a converted model), "
            "or run the whole recipe with `actvar run r.yaml`",
        ),
        (
            "version: 1\nsteps:\n  - {step: convert, model: var-fashion}\n",
            "r.yaml: the recipe has no distill step, `actvar distill` needs one",
        ),
        (
            "version: 1\nsteps:\n  - {step: distill, teacher: var-fashion, student: s.pth, buget: 0.8}\n",
            "r.yaml:3:59: unknown key 'buget' (did you mean 'budget'?)",
        ),
        (
            "version: 1\nsteps:\n  - {step: distill, teacher: var-fashion, student: s.pth, budget: 1.5}\n",
            "r.yaml:3:67: budget must be less than 1, not 1.5",
        ),
    ],
)
def test_recipes_that_do_not_do(actvar: Actvar, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    done = actvar("distill", "r.yaml")
    assert (done.code, done.out, done.err) == (2, "", f"error: {message}\n")
    assert [p.name for p in tmp_path.iterdir()] == ["r.yaml"]


def test_a_student_that_was_not_converted(actvar: Actvar, models: Path, tmp_path: Path) -> None:
    dense = models / "dense.safetensors"
    (tmp_path / "r.yaml").write_text(STEP.format(dense=dense, student=dense))
    done = actvar("distill", "r.yaml", "-q")
    assert (done.code, done.err) == (2, "error: the student tiny has no experts: convert it first\n")
    assert [p.name for p in tmp_path.iterdir()] == ["r.yaml"]


def test_a_tokenizer_in_the_way_is_said_before_the_training(actvar: Actvar, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "lesson.tokenizer.safetensors").write_text("other")
    done = actvar("distill", recipe)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("error: lesson.tokenizer.safetensors exists: choose another name")
    assert "distilling" not in done.err


def test_a_training_is_not_lost_where_it_cannot_be_saved(
    actvar: Actvar, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise ActvarError("cannot write lesson.safetensors: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(artefact, "save", full)
        assert actvar("distill", recipe).code == 1
    assert [p.name for p in tmp_path.iterdir() if "checkpoint" in p.name]
    done = actvar("distill", recipe)
    assert done.code == 0
    assert not [p.name for p in tmp_path.iterdir() if "checkpoint" in p.name]


def test_options_of_a_distillation(actvar: Actvar, recipe: Path, tmp_path: Path) -> None:
    chosen = ("distill", recipe, "-o", "s.safetensors", "--set", "steps.distill.budget=0.8", "--json")
    assert actvar(*chosen).json["path"] == "s.safetensors"
    assert not (tmp_path / "lesson.safetensors").exists()
    assert read_config("s.safetensors").default_budget == 0.8
    before = (tmp_path / "s.safetensors").read_bytes()
    assert actvar(*chosen, "--force", "--set", "steps.distill.seed=5").code == 0
    assert (tmp_path / "s.safetensors").read_bytes() != before
