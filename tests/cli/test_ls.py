"""actvar ls."""

from __future__ import annotations

from actvar_cli.recipe.read import shipped
from actvar_cli.weights.zoo import KNOWN
from tests.cli.conftest import Actvar


def test_known_models(actvar: Actvar) -> None:
    done = actvar("ls")
    assert (done.code, done.err) == (0, "")
    row = next(line.split() for line in done.out.splitlines() if "var-d16" in line)
    assert row[:5] == ["var-d16", "1.24", "GB", "3.55", "no"]


def test_for_programs(actvar: Actvar) -> None:
    models = actvar("ls", "--json").json["models"]
    assert [m["name"] for m in models] == list(KNOWN)
    d16 = next(m for m in models if m["name"] == "var-d16")
    assert (d16["bytes"], d16["fid"], d16["cached"], d16["path"]) == (1_243_116_346, 3.55, False, None)
    assert actvar("ls", "-q").out.split() == list(KNOWN)


def test_recipes(actvar: Actvar) -> None:
    row = next(line for line in actvar("ls", "--recipes").out.splitlines() if line.split()[:1] == ["var-fashion"])
    assert "convert, distill, profile, evaluate, export, report" in row
    assert actvar("ls", "--recipes", "-q").out.split() == list(shipped())
    recipes = {recipe["name"]: recipe for recipe in actvar("ls", "--recipes", "--json").json["recipes"]}
    assert recipes["var-fashion"]["steps"] == ["convert", "distill", "profile", "evaluate", "export", "report"]
