"""actvar export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import actvar_cli
from actvar_cli.weights.artefact import save
from tests.cli.conftest import Actvar
from tests.tiny import tiny_model

FILES = ["README.md", "config.json", "model.safetensors", "tokenizer.safetensors"]


def test_a_folder_that_can_be_handed_on(actvar: Actvar, models: Path, tmp_path: Path) -> None:
    done = actvar("export", models / "compressed.safetensors", "-o", "out", "--dtype", "bfloat16", "-q")
    assert (done.code, done.out, done.err) == (0, "out\n", "")
    assert sorted(p.name for p in Path("out").iterdir()) == FILES
    assert load_file("out/model.safetensors")["word_embed.weight"].dtype == torch.bfloat16
    Path("out").rename("moved")
    model = actvar_cli.load("moved")
    assert model.config.default_budget == 0.7
    done = actvar("sample", "moved", "-n", "1", "-o", "g.png")
    assert done.code == 0


def test_json_names_the_files(actvar: Actvar, models: Path) -> None:
    found = actvar("export", models / "dense.safetensors", "-o", "out/", "--json").json
    assert sorted(found["files"]) == FILES
    assert (found["path"], found["dtype"]) == ("out", "float32")


def test_recipe_and_record_go_with_a_run(actvar: Actvar, models: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        f"version: 1\nsteps:\n  - {{step: export, model: {models / 'dense.safetensors'}}}\n"
    )
    assert actvar("run", "r.yaml", "-o", "run").code == 0
    assert actvar("export", "run", "-o", "out").code == 0
    assert {p.name for p in Path("out").iterdir()} >= {"recipe.yaml", "run.json", *FILES}


def test_what_a_run_measured_is_in_the_card(actvar: Actvar, models: Path, tmp_path: Path) -> None:
    dense, compressed = models / "dense.safetensors", models / "compressed.safetensors"
    (tmp_path / "r.yaml").write_text(
        "version: 1\nsteps:\n"
        f"  - {{step: evaluate, model: {compressed}, against: {dense}, count: 4, batch: 4}}\n"
        f"  - {{step: export, model: {compressed}}}\n"
    )
    assert actvar("run", "r.yaml", "-o", "run").code == 0
    assert actvar("export", "run", "-o", "again").code == 0
    assert actvar("export", compressed, "-o", "unmeasured").code == 0
    first, again, unmeasured = (ModelCard.load(f"{name}/README.md").data for name in ("run", "again", "unmeasured"))
    assert [r.metric_type for r in first.eval_results] == ["cost", "token_match", "kl_divergence"]
    assert again.eval_results == first.eval_results
    assert unmeasured.eval_results is None


def test_a_large_model_in_shards(actvar: Actvar, models: Path) -> None:
    model = models / "compressed.safetensors"
    found = actvar("export", model, "-o", "out", "--shard-size", "60KB", "--json").json
    shards = [name for name in found["files"] if name.startswith("model-")]
    assert len(shards) > 1
    assert "model.safetensors.index.json" in found["files"]
    again = actvar("export", "out", "-o", "whole", "--json")
    assert (again.code, sorted(again.json["files"])) == (0, FILES)
    assert actvar("sample", "out", "-n", "1", "-o", "g.png").code == 0
    assert actvar("profile", "out", "--batch", "1", "--repeats", "1").code == 0


def test_dry_run_writes_nothing(actvar: Actvar, models: Path) -> None:
    model = models / "dense.safetensors"
    found = actvar("export", model, "-o", "out", "--dry-run", "--json")
    assert (found.code, sorted(found.json["files"])) == (0, FILES)
    assert not Path("out").exists()
    assert actvar("export", model, "-o", "out").code == 0
    assert found.json["files"] == {p.name: p.stat().st_size for p in Path("out").iterdir()}


@pytest.mark.parametrize("name", ["d16.pth", "d16.safetensors"])
def test_the_published_layout_is_one_file(actvar: Actvar, models: Path, name: str) -> None:
    found = actvar("export", models / "compressed.safetensors", "--format", "var", "-o", name, "--json")
    assert (found.json["path"], found.json["format"]) == (name, "var")
    assert list(found.json["files"]) == [name, "d16.tokenizer.safetensors"]
    assert "it computes all of them" in found.err
    assert actvar_cli.load(name).config.is_dense
    again = actvar("export", models / "compressed.safetensors", "--format", "var", "-o", name)
    assert (again.code, again.err) == (2, f"error: {name} exists: choose another name, or replace it with --force\n")


def test_who_exports_what_was_trained_on_one_row_is_told(actvar: Actvar, models: Path, tmp_path: Path) -> None:
    said = []
    for delta in (False, True):
        save(tmp_path / f"one-{delta}.safetensors", tiny_model(experts=True, guidance=True, delta=delta), {})
        done = actvar("export", f"one-{delta}.safetensors", "--format", "var", "-o", f"out-{delta}.pth")
        assert done.code == 0
        said.append(done.err)
    assert "trained on one, and may do worse with two" in said[0]
    # Then the weights are the original's, which was trained on two.
    assert "trained on one" not in said[1]
    assert "these are the original's weights: what was learned for lower budgets is left out" in said[1]
    two = actvar("export", models / "compressed.safetensors", "--format", "var", "-o", "two.pth")
    assert "trained on one" not in two.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["DENSE", "-o", "out", "--format", "vra"],
            "--format must be 'actvar' or 'var', not 'vra' (did you mean 'var'?)",
        ),
        (
            ["DENSE", "-o", "out", "--format", "var"],
            "out: the published layout is one file: call it .safetensors or .pth",
        ),
        (
            ["DENSE", "-o", "out", "--dtype", "float61"],
            "--dtype must be 'float32', 'bfloat16' or 'float16', not 'float61' (did you mean 'float16'?)",
        ),
        (["DENSE"], "say where the model goes: -o PATH, or --push OWNER/REPO"),
        (
            ["DENSE", "-o", "out", "--shard-size", "2QB"],
            "--shard-size must be a size such as 500MB or 5GB, not '2QB'",
        ),
        (
            ["DENSE", "-o", "out.pth", "--format", "var", "--shard-size", "2GB"],
            "a shard size means nothing with format var: the published layout is one file",
        ),
        (["DENSE", "-o", "out.pth", "--format", "var", "--push", "a/b"], "--push is for --format actvar"),
        (["DENSE", "-o", "out.pth", "--format", "var", "--dry-run"], "--dry-run is for --format actvar"),
        (["DENSE", "-o", "out", "--private"], "--private is for --push"),
        (["", "-o", "out"], "no model is named: `actvar ls` shows the known ones"),
        (["DENSE", "--push", ""], "'' is no repository name: write owner/repo"),
        (["DENSE", "--push", "small"], "'small' is no repository name: write owner/repo"),
        (["DENSE", "--push", "me/small"], "HF_HUB_OFFLINE forbids pushing to me/small: unset it"),
        (["DENSE", "-o", "full"], "full exists and is not empty: choose another name, or replace it with --force"),
        (
            ["DENSE", "-o", "full", "--force"],
            "full holds 'thesis.tex', which is none of the files to be replaced: --force would delete it",
        ),
        (["DENSE", "-o", "full/thesis.tex"], "full/thesis.tex exists and is not a folder"),
        (["nothing.pth", "-o", "out"], "no such file: nothing.pth"),
    ],
)
def test_wrong_input(actvar: Actvar, models: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    done = actvar("export", *(str(models / "dense.safetensors") if a == "DENSE" else a for a in arguments))
    assert (done.code, done.out, done.err) == (2, "", f"error: {message}\n")
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["full", "full/thesis.tex"]


def test_a_known_name_is_no_folder(actvar: Actvar, tmp_path: Path) -> None:
    (tmp_path / "var-fashion").mkdir()
    (tmp_path / "var-fashion" / "recipe.yaml").write_text("of another model")
    assert actvar("export", "var-fashion", "-o", "out", "-q").code == 0
    assert not Path("out/recipe.yaml").exists()


def test_a_recipe_goes_with_no_model_of_an_earlier_one(actvar: Actvar, models: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        f"version: 1\nsteps:\n  - {{step: export, model: {models / 'dense.safetensors'}}}\n"
    )
    assert actvar("run", "r.yaml", "-o", "run").code == 0
    record = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps({**record, "finished": False, "steps": []}))
    assert actvar("export", "run", "-o", "out").code == 0
    assert not Path("out/recipe.yaml").exists()


@pytest.mark.parametrize("record", ['{"steps": 1000}', "[1]", '{"steps": ["a"]}', "no JSON"])
def test_a_record_of_another_program_is_none(actvar: Actvar, models: Path, tmp_path: Path, record: str) -> None:
    shutil.copytree(models, tmp_path / "mine")
    (tmp_path / "mine" / "dense.safetensors").rename(tmp_path / "mine" / "model.safetensors")
    (tmp_path / "mine" / "run.json").write_text(record)
    assert actvar("export", "mine", "-o", "out").code == 0
    assert not Path("out/run.json").exists()


def test_a_folder_that_cannot_be_replaced(actvar: Actvar, models: Path) -> None:
    done = actvar("export", models / "dense.safetensors", "-o", ".")
    assert (done.code, done.err) == (2, "error: . is where you are and cannot be replaced: name a folder inside it\n")
