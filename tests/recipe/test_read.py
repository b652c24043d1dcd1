"""From the text of a recipe to a checked one."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from actvar_cli.errors import InputError
from actvar_cli.recipe.read import RecipeError, find, read, shipped
from actvar_cli.recipe.steps import ConvertStep, DistillStep

GOOD = """\
version: 1
steps:
  - step: convert
    model: var-fashion
  - step: distill
    budget: 0.8
    lr: 1e-4
  - step: profile
"""


def problems(tmp_path: Path, text: str, *settings: str) -> list[str]:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        read(path, settings)
    return str(caught.value).replace(str(path), "r.yaml").splitlines()


def good(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    return path


def test_a_good_recipe(tmp_path: Path) -> None:
    file = read(good(tmp_path))
    convert, distill, _ = file.recipe.steps
    assert isinstance(convert, ConvertStep) and convert.experts == 8
    assert isinstance(distill, DistillStep) and distill.lr == 1e-4
    assert file.name == "r"
    assert file.text == GOOD


def test_every_problem_is_reported_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
version: 2
sed: 1
steps:
  - step: convert
    model: var-fashon
    exprts: 8
    method: kmean
    images: 4
    images: 512
  - step: distil
  - step: distill
    lr: fast
    budget: 1.4
    stages: {experts: {stps: 4}, tokens: 3}
  - step: sample
    classes: [1, -2]
  - step: sample
    name: other
    classes: 3
  - 7
  - lr: 3
"""
    assert problems(tmp_path, text) == [
        "r.yaml:1:10: version must be 1, not 2",
        "r.yaml:2:1: unknown key 'sed' (did you mean 'seed'?)",
        "r.yaml:5:12: unknown model 'var-fashon' (did you mean 'var-fashion'?): `actvar ls` shows the known ones",
        "r.yaml:6:5: unknown key 'exprts' (did you mean 'experts'?)",
        "r.yaml:7:13: method must be 'tiers', 'coactivation', 'kmeans', 'magnitude', 'taylor', 'random' or "
        "'contiguous', not 'kmean' (did you mean 'kmeans'?)",
        "r.yaml:8:13: images must be greater than or equal to 8, not 4",
        "r.yaml:9:5: key 'images' stands twice, first at 8:5",
        "r.yaml:10:11: unknown step 'distil' (did you mean 'distill'?)",
        "r.yaml:12:9: lr must be a valid number, not 'fast'",
        "r.yaml:13:13: budget must be less than 1, not 1.4",
        "r.yaml:14:24: unknown key 'stps' (did you mean 'steps'?)",
        "r.yaml:14:42: tokens must hold keys, not 3",
        "r.yaml:16:18: each of classes must be greater than or equal to 0, not -2",
        "r.yaml:19:14: classes must be a list, not 3",
        "r.yaml:20:5: a step must hold keys, not 7",
        "r.yaml:21:5: the step has no 'step': one of convert, distill, profile, evaluate, sample, export, report",
    ]


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        ("format: vra", "r.yaml:3:48: format must be 'actvar' or 'var', not 'vra' (did you mean 'var'?)"),
        ("shard_size: big", "r.yaml:3:52: shard_size must be a size such as 500MB or 5GB, not 'big'"),
        (
            "format: var, shard_size: 1GB",
            "r.yaml:3:5: a shard size means nothing with format var: the published layout is one file",
        ),
    ],
)
def test_an_export_that_makes_no_sense(tmp_path: Path, step: str, problem: str) -> None:
    text = f"version: 1\nsteps:\n  - {{step: export, model: var-fashion, {step}}}\n"
    assert problems(tmp_path, text) == [problem]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "r.yaml:1:1: the recipe is empty"),
        ("- step: convert\n", "r.yaml:1:1: a recipe holds keys (version, steps), not list"),
        ("version: 1\n", "r.yaml:1:1: 'steps' is missing"),
        ("version: 1\nsteps: []\n", "r.yaml:2:8: steps must not be empty"),
        ("version: 1\nsteps:\n", "r.yaml:2:7: steps must be a list, not nothing"),
    ],
)
def test_what_is_hardly_a_recipe(tmp_path: Path, text: str, problem: str) -> None:
    assert problems(tmp_path, text) == [problem]


def test_set_replaces_values_of_steps_by_name(tmp_path: Path) -> None:
    settings = ["steps.distill.lr=3e-5", "steps.distill.stages.experts.steps=7", "seed=5", "steps.profile.name=timing"]
    file = read(good(tmp_path), settings)
    distill = file.recipe.steps[1]
    assert isinstance(distill, DistillStep)
    assert (distill.lr, distill.stages.experts.steps, distill.stages.tokens.steps) == (3e-5, 7, 200)
    assert file.recipe.seed == 5
    assert file.flow[2].name == "timing"


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("steps.distill.lr", "--set steps.distill.lr: write KEY=VALUE, such as steps.distill.lr=1e-4"),
        (
            "steps.distll.lr=1",
            "--set steps.distll.lr=1: no step is called 'distll' (did you mean 'distill'?): convert, distill, profile",
        ),
        ("steps.distill=1", "--set steps.distill=1: name a key of step 'distill': steps.distill.KEY=VALUE"),
        ("steps.distill.lr.x=1", "--set steps.distill.lr.x=1: 'lr' holds 0.0001, no keys"),
        ("steps.distill.lr=-1", "--set steps.distill.lr=-1: lr must be greater than 0, not -1"),
        (
            "steps.distill.stages.expert.steps=1",
            "--set steps.distill.stages.expert.steps=1: unknown key 'expert' (did you mean 'experts'?)",
        ),
        ("steps.distill.precision=no way", "--set steps.distill.precision=no way: "),
        ("sead=1", "--set sead=1: unknown key 'sead' (did you mean 'seed'?)"),
    ],
)
def test_a_wrong_set_is_named(tmp_path: Path, setting: str, problem: str) -> None:
    (line,) = problems(tmp_path, GOOD, setting)
    assert line.startswith(problem)


def test_a_value_that_was_replaced_is_not_complained_about(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD.replace("0.8", "8"))
    assert read(path, ["steps.distill.budget=0.8"]).recipe.steps[1].budget == 0.8  # type: ignore[union-attr]


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not a recipe: it is not UTF-8 text"):
        read(binary)
    with pytest.raises(InputError, match=r"no such file: nowhere\.yaml"):
        find("nowhere.yaml")
    with pytest.raises(InputError, match="is a folder, not a recipe"):
        find(str(tmp_path))
    with pytest.raises(InputError, match=r"unknown recipe 'var-fashon' \(did you mean 'var-fashion'\?\)"):
        find("var-fashon")


def test_the_shipped_recipes_are_valid_and_say_what_they_are() -> None:
    assert "var-fashion" in shipped()
    for name, path in shipped().items():
        file = read(path)
        assert file.name == name
        assert file.recipe.description


def test_no_two_shipped_recipes_have_one_name() -> None:
    folder = shipped()["var-fashion"].parent
    assert sorted(shipped().values()) == sorted(folder.rglob("*.yaml"))


def test_baselines_have_the_steps_and_the_samples_of_the_demo() -> None:
    ours = read(shipped()["var-fashion"]).recipe.steps[1]
    assert isinstance(ours, DistillStep)
    names = {"static-magnitude", "static-taylor", "random-experts", "static-tokens", "static-blocks"}
    untrained = {"norm-router", "cached-tokens"}
    assert names | untrained == {name for name, path in shipped().items() if path.parent.name == "baselines"}
    for name in names:
        theirs = read(shipped()[name]).recipe.steps[1]
        assert isinstance(theirs, DistillStep)
        assert theirs.stages.learning == ours.stages.learning
        assert theirs.stages.guidance == ours.stages.guidance
        assert theirs.model_copy(update={"stages": ours.stages}) == ours


def test_the_small_run_that_the_shipped_recipe_describes_is_valid() -> None:
    path = shipped()["var-fashion"]
    comment = "".join(line[1:] for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    command = shlex.split(re.sub(r"\\\n", " ", comment[comment.index("actvar run var-fashion -o") :]))
    settings = [value for option, value in itertools.pairwise(command) if option == "--set"]
    assert len(settings) > 5
    read(path, settings)


def test_reading_a_recipe_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from actvar_cli.recipe.read import read; read(Path(sys.argv[1]));"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, good(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
