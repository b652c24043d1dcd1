"""The embedded model from end to end, through the command line, as a newcomer meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import actvar_cli
from actvar_cli.evaluate.images import to_uint8
from actvar_cli.evaluate.reference import load_reference, real_images

pytestmark = pytest.mark.slow

SMALL = [
    "steps.convert.images=32",
    "steps.distill.images=32",
    "steps.distill.batch=8",
    "steps.distill.stages.guidance.steps=4",
    "steps.distill.stages.experts.steps=4",
    "steps.distill.stages.tokens.steps=4",
    "steps.profile.batch=4",
    "steps.profile.repeats=1",
    "steps.evaluate.count=40",
    "steps.report.count=1",
]


def actvar(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in ``cwd``."""
    return subprocess.run(
        [sys.executable, "-m", "actvar_cli", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def run(cwd: Path, *more: str) -> dict[str, Any]:
    """Run the shipped recipe, small, by its name."""
    overrides = [part for setting in SMALL for part in ("--set", setting)]
    done = actvar("run", "var-fashion", "-o", "out", "--json", *overrides, *more, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_the_shipped_recipe_runs_anywhere_and_only_once(tmp_path: Path) -> None:
    first = run(tmp_path)
    out = tmp_path / "out"
    assert {"model.safetensors", "report.html", "run.json", "recipe.yaml"} <= {p.name for p in out.iterdir()}
    rows = {row["what"]: row for row in first["table"]}
    assert rows["cost, transformer"]["dense"] == "100.0 %"
    assert 40 < float(rows["cost, transformer"]["compressed"].split()[0]) < 48
    assert "data:image/png;base64," in (out / "report.html").read_text()
    before = (out / "model.safetensors").stat().st_mtime_ns
    run(tmp_path)
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    model = actvar_cli.load(out / "model.safetensors")
    assert model.threshold is not None
    assert model.sample([3, 7], seed=0).images.shape == (2, 1, 32, 32)


def test_convert_is_piped_into_profile(tmp_path: Path) -> None:
    made = actvar("convert", "var-fashion", "--experts", "8", "-o", "m.safetensors", "-q", cwd=tmp_path)
    assert (made.returncode, made.stdout) == (0, "m.safetensors\n"), made.stderr
    told = actvar("profile", made.stdout.strip(), "--json", "--batch", "4", "--repeats", "1", cwd=tmp_path)
    found = json.loads(told.stdout)
    assert abs(found["cost"] - 0.8) < 0.03
    assert abs(found["compressed"]["difference"]) < 0.005


def test_the_shipped_pictures_and_model_are_what_they_should_be() -> None:
    reference = load_reference()
    images, labels = real_images()
    _, predicted = reference.judge(images)
    assert float((predicted == labels).float().mean()) > 0.9
    labels = torch.arange(200) % 10
    samples = actvar_cli.load("var-fashion").sample(labels, seed=0)
    _, predicted = reference.judge(to_uint8(samples.images))
    assert float((predicted == labels).float().mean()) > 0.85
