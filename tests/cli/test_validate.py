"""actvar validate."""

from __future__ import annotations

from pathlib import Path

from actvar_cli.recipe.read import shipped
from tests.cli.conftest import Actvar

BAD = "version: 1\nsteps:\n  - step: convert\n    model: var-fashion\n    exprts: 8\n"


def test_good_recipes(actvar: Actvar) -> None:
    path = shipped()["var-fashion"]
    done = actvar("validate", "var-fashion")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{path}: ok (convert, distill, profile, evaluate, export, report)\n"
    assert actvar("validate", path, "--json").json["recipes"][0]["path"] == str(path)
    assert actvar("validate", path, "-q").out == ""


def test_all_problems_of_all_files(actvar: Actvar, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(BAD)
    (tmp_path / "b.yaml").write_text(BAD + "    experts: 1\n")
    done = actvar("validate", "a.yaml", "b.yaml", "c.yaml", "var-fashion")
    assert done.code == 2
    assert done.err.splitlines() == [
        "error: a.yaml:5:5: unknown key 'exprts' (did you mean 'experts'?)",
        "error: b.yaml:5:5: unknown key 'exprts' (did you mean 'experts'?)",
        "error: b.yaml:6:14: experts must be greater than or equal to 2, not 1",
        "error: no such file: c.yaml",
    ]
    assert "var-fashion.yaml: ok" in done.out


def test_json_is_for_valid_recipes_only(actvar: Actvar, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(BAD)
    assert actvar("validate", "a.yaml", "--json").out == ""


def test_settings_are_checked_too(actvar: Actvar) -> None:
    done = actvar("validate", "var-fashion", "--set", "steps.distill.budget=2")
    assert (done.code, done.err) == (2, "error: --set steps.distill.budget=2: budget must be less than 1, not 2\n")
