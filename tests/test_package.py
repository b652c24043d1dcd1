"""What holds for the package as a whole."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.resources import files
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_import_is_light() -> None:
    code = "import sys, actvar_cli; print([m for m in ('torch', 'huggingface_hub', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_typed() -> None:
    assert (files("actvar_cli") / "py.typed").is_file()


def test_every_dependency_is_pinned_for_ci() -> None:
    def name(requirement: str) -> str:
        return requirement.split(">")[0].split("=")[0].split("[")[0].lower().replace("-", "_")

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {name(line) for line in lines if "==" in line}
    assert {name(r) for r in asked} <= pinned
    assert "torch==2.13.0" in lines
