"""actvar run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from actvar_cli.model.config import ModelConfig, TokenizerConfig, TransformerConfig
from actvar_cli.model.var import VAR
from actvar_cli.recipe import work
from actvar_cli.weights import fetch, load
from tests.cli.conftest import Actvar


@pytest.fixture
def recipe(models: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(
        "version: 1\nsteps:\n"
        f"  - {{step: profile, model: {models / 'compressed.safetensors'}, batch: 2, repeats: 1}}\n"
        f"  - {{step: evaluate, against: {models / 'dense.safetensors'}, count: 4}}\n"
        "  - {step: export}\n  - {step: report, count: 1}\n"
    )
    return path


def test_it_leaves_a_folder_and_prints_one_table(actvar: Actvar, recipe: Path) -> None:
    done = actvar("run", recipe)
    assert done.code == 0
    assert {"model.safetensors", "report.html", "run.json", "recipe.yaml"} <= {
        p.name for p in Path("runs/small").iterdir()
    }
    rows = [line.strip() for line in done.out.splitlines()]
    assert rows[1].split() == ["dense", "compressed"]
    for what in ("cost, transformer", "time per image", "token match", "KL to the dense model"):
        assert sum(row.startswith(what) for row in rows) == 1
    assert rows[-1].startswith("runs/small: model.safetensors, report.html, run.json (")
    assert "step 2 of 4, evaluate" in done.err


def test_a_second_run_says_that_all_is_cached(actvar: Actvar, recipe: Path) -> None:
    assert actvar("run", recipe, "-o", "out", "-q").out == "out\n"
    done = actvar("run", recipe, "-o", "out", "--json")
    assert [line for line in done.err.splitlines() if "cached" in line] == [
        f"step {number} of 4, {name}: cached"
        for number, name in enumerate(["profile", "evaluate", "export", "report"], start=1)
    ]
    assert done.json["path"] == "out"
    assert done.json["table"][0]["what"] == "cost, transformer"
    assert done.json["steps"] == json.loads(Path("out/run.json").read_text())["steps"]
    assert done.json["argv"] == ["actvar", "run", str(recipe), "-o", "out"]


def test_a_dry_run_touches_nothing(actvar: Actvar, recipe: Path, tmp_path: Path) -> None:
    done = actvar("run", recipe, "--dry-run")
    assert done.code == 0
    states = [line.split()[:3] for line in done.out.splitlines() if "would run" in line]
    assert [state[0] for state in states] == ["profile", "evaluate", "export", "report"]
    assert [p.name for p in tmp_path.iterdir()] == ["small.yaml"]
    actvar("run", recipe, "-q")
    plan = actvar("run", recipe, "--dry-run", "--set", "steps.report.count=2", "--json").json
    assert [step["cached"] for step in plan["steps"]] == [True, True, True, False]
    assert plan["steps"][3]["memory_bytes"] > 0 and plan["steps"][0]["seconds"] is None


def test_a_dry_run_on_a_published_model_needs_not_have_it(actvar: Actvar) -> None:
    small, large = (
        actvar("run", "var-d16", "--dry-run", "--json", "--set", f"steps.convert.model={name}").json["steps"]
        for name in ("var-d16", "var-d36")
    )
    assert all(step["seconds"] is not None and not step["cached"] for step in small)
    # Of about the size of the published file, with the tokenizer.
    assert 1.6e9 < small[0]["disk_bytes"] < 1.8e9
    assert all(a["memory_bytes"] < b["memory_bytes"] for a, b in zip(small, large, strict=True))


def test_a_dry_run_on_a_model_that_is_not_here(actvar: Actvar, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("version: 1\nsteps:\n  - {step: convert, model: 'hf://me/mine'}\n")
    done = actvar("run", "r.yaml", "--dry-run")
    assert done.code == 0
    assert "depends on a model that is not on this machine (`actvar fetch`)" in done.out


def test_a_dry_run_fetches_no_tokenizer(actvar: Actvar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = TransformerConfig(depth=1, embed_dim=64, num_heads=1, num_classes=3)
    config = ModelConfig(name="small", tokenizer=TokenizerConfig(), transformer=small)
    torch.save(VAR(config).state_dict(), tmp_path / "var_d1.pth")
    monkeypatch.setattr(fetch, "hub_file", lambda *_, **__: pytest.fail("asked for"))
    monkeypatch.setattr(fetch, "here", lambda _: None)
    monkeypatch.setattr(load, "here", lambda _: None)
    (tmp_path / "r.yaml").write_text("version: 1\nsteps:\n  - {step: convert, model: ./var_d1.pth}\n")
    done = actvar("run", "r.yaml", "--dry-run", "--json")
    assert (done.code, done.json["steps"][0]["seconds"]) == (0, None)
    done = actvar("run", "r.yaml", "--dry-run", "--device", "abacus")
    assert done.code == 2 and done.err.startswith("error: device 'abacus' is not usable here: ")
    # What is wrong with a file that is here is said.
    (tmp_path / "var_d1.pth").write_text("text")
    done = actvar("run", "r.yaml", "--dry-run")
    assert done.code == 2 and "var_d1.pth is not a checkpoint" in done.err


def test_a_gate_that_is_not_met(actvar: Actvar, recipe: Path) -> None:
    done = actvar("run", recipe, "--set", "steps.evaluate.max_cost=0.01")
    assert done.code == 3
    assert "cost, transformer" in done.out
    assert done.err.splitlines()[-1].startswith("error: evaluate: gate not met: cost 0.")
    assert Path("runs/small/report.html").exists()


def test_interrupted_it_says_that_it_can_go_on(actvar: Actvar, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(work, "evaluate", interrupted)
        done = actvar("run", recipe)
    assert (done.code, done.out) == (130, "")
    assert done.err.splitlines()[-2:] == ["stopped: the same command goes on from here", "error: interrupted"]
    record = json.loads(Path("runs/small/run.json").read_text())
    assert not record["finished"]
    assert [step["name"] for step in record["steps"]] == ["profile"]
    assert "step 1 of 4, profile: cached" in actvar("run", recipe).err
    with monkeypatch.context() as patch:
        patch.setattr(work, "evaluate", interrupted)
        done = actvar("run", recipe, "--force")
    assert done.err.splitlines()[-2] == "stopped: the same command without --force goes on from here"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["var-fashon"], "unknown recipe 'var-fashon' (did you mean 'var-fashion'?): `actvar ls --recipes` shows them"),
        (["nowhere.yaml"], "no such file: nowhere.yaml"),
        (
            ["small.yaml", "--set", "steps.profile.batch=0"],
            "--set steps.profile.batch=0: batch must be greater than or equal to 1, not 0",
        ),
        (["small.yaml", "-o", "."], ". exists and is not the folder of a run: choose another one with -o"),
        (["small.yaml", "--set", "steps.profile.model=gone.pth"], "no such file: gone.pth"),
    ],
)
def test_wrong_input(actvar: Actvar, recipe: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = actvar("run", *arguments)
    assert (done.code, done.out, done.err) == (2, "", f"error: {message}\n")
    assert [p.name for p in tmp_path.iterdir()] == ["small.yaml"]
