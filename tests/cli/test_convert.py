"""actvar convert."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import actvar_cli
from actvar_cli.weights.artefact import read_config, read_lineage
from tests.cli.conftest import Actvar

SMALL = ("--experts", "4", "--images", "16")


def test_it_writes_a_model_that_is_usable_at_once(actvar: Actvar, models: Path, tmp_path: Path) -> None:
    done = actvar("convert", models / "dense.safetensors", *SMALL, "-o", "m.safetensors", "--json")
    assert done.code == 0
    assert done.json["path"] == "m.safetensors"
    assert done.json["max_logit_difference"] <= 1e-4
    assert 0.8 in done.json["budgets"]
    config = read_config(tmp_path / "m.safetensors")
    assert config.experts is not None and config.experts.num_experts == 4
    (step,) = read_lineage("m.safetensors")["steps"]
    assert (step["step"], step["experts"], step["method"], len(step["sha256"])) == ("convert", 4, "tiers", 64)
    model = actvar_cli.load("m.safetensors", budget=0.8)
    assert model.sample([0], seed=0).images.shape == (1, 1, 6, 6)


def test_for_a_person_and_for_a_pipe(actvar: Actvar, models: Path) -> None:
    done = actvar("convert", models / "dense.safetensors", *SMALL, "-o", "m.safetensors")
    assert "largest logit difference, all experts on" in done.out
    assert "fitting routers" in done.err
    done = actvar("convert", models / "dense.safetensors", *SMALL, "-o", "n.safetensors", "-q")
    assert (done.out, done.err) == ("n.safetensors\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.safetensors"], "no such file: nowhere.safetensors"),
        (["var-fashon"], "unknown model 'var-fashon' (did you mean 'var-fashion'?): `actvar ls` shows the known ones"),
        (["text.pth"], "text.pth is not a checkpoint: expected .safetensors or .pth"),
        (["DENSE", "--experts", "1"], "--experts must be greater than or equal to 2, not 1"),
        (["DENSE", "--experts", "4,4,1"], "--experts must be greater than or equal to 2, not [4, 4, 1]"),
        (["DENSE", "--experts", "4,4,8"], "3 numbers of experts were given, tiny has 2 blocks"),
        (
            ["DENSE", "--experts", "5"],
            "5 experts do not divide the FFN's 128 neurons; possible are 2, 4, 8, 16, 32, 64",
        ),
        (
            ["DENSE", "--method", "kmean"],
            "--method must be 'tiers', 'coactivation', 'kmeans', 'magnitude', 'taylor', 'random' or 'contiguous', not "
            "'kmean' (did you mean 'kmeans'?)",
        ),
        (["COMPRESSED"], "tiny has experts already; convert the original model"),
        (["DENSE", "--device", "abacus"], "device 'abacus' is not usable here"),
    ],
)
def test_wrong_input(actvar: Actvar, models: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "text.pth").write_text("weights, honestly")
    places = {"DENSE": str(models / "dense.safetensors"), "COMPRESSED": str(models / "compressed.safetensors")}
    done = actvar("convert", *(places.get(a, a) for a in arguments), "-o", "out/m.safetensors")
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1].startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()


def test_every_wrong_option_is_named(actvar: Actvar, models: Path) -> None:
    done = actvar("convert", models / "dense.safetensors", "--experts", "1", "--images", "2", "-o", "m.safetensors")
    assert done.err.splitlines() == [
        "error: --experts must be greater than or equal to 2, not 1",
        "error: --images must be greater than or equal to 8, not 2",
    ]


def test_an_output_that_is_there_is_kept_before_any_work(actvar: Actvar, models: Path, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_text("mine")
    done = actvar("convert", "nowhere.safetensors", "-o", "m.safetensors")
    assert done.code == 2
    assert done.err == "error: m.safetensors exists: choose another name, or replace it with --force\n"
    assert (tmp_path / "m.safetensors").read_text() == "mine"
    done = actvar("convert", models / "dense.safetensors", *SMALL, "-o", "m.safetensors", "--force", "-q")
    assert done.code == 0
    assert read_config("m.safetensors").experts is not None


def test_an_output_that_cannot_be(actvar: Actvar, models: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = actvar("convert", models / "dense.safetensors", "-o", "file/m.safetensors")
    assert done.code == 2
    assert done.err == f"error: cannot write file/m.safetensors: {tmp_path / 'file'} is not a folder\n"


@pytest.mark.slow
def test_the_path_goes_through_a_pipe(models: Path, tmp_path: Path) -> None:
    actvar = f"{sys.executable} -m actvar_cli"
    small = "--experts 4 --images 16 --seed 0 -q"
    command = (
        f"{actvar} convert {models / 'dense.safetensors'} {small} -o m.safetensors "
        f"| xargs {actvar} profile --batch 2 --repeats 1 --json"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["budget"] == 0.8


def test_options_of_a_conversion(actvar: Actvar, models: Path) -> None:
    chosen = ("--method", "contiguous", "--router", "static", "--seed", "3")
    assert actvar("convert", models / "dense.safetensors", *SMALL, *chosen, "-o", "m.safetensors", "-q").code == 0
    experts = read_config("m.safetensors").experts
    assert experts is not None and (experts.method, experts.router) == ("contiguous", "static")
    assert read_lineage("m.safetensors")["steps"][0]["seed"] == 3
