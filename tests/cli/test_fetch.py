"""actvar fetch."""

from __future__ import annotations

from pathlib import Path

import pytest

from actvar_cli.weights import zoo
from actvar_cli.weights.zoo import ASSETS
from tests.cli.conftest import Actvar

shipped = pytest.mark.skipif(not (ASSETS / "var-fashion.safetensors").is_file(), reason="needs the embedded model")


@shipped
def test_the_embedded_model_is_here_already(actvar: Actvar) -> None:
    done = actvar("fetch", "var-fashion", "-q")
    assert (done.code, done.err) == (0, "")
    assert Path(done.out.strip()) == zoo.ASSETS / "var-fashion.safetensors"
    assert actvar("fetch", "var-fashion", "--json").json["path"] == done.out.strip()


def test_an_unknown_name(actvar: Actvar) -> None:
    done = actvar("fetch", "var-d161")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: unknown model 'var-d161' (did you mean 'var-d16'?): `actvar ls` shows the known ones\n"


def test_without_a_network_it_says_so(actvar: Actvar) -> None:
    done = actvar("fetch", "var-d16")
    assert done.code == 1
    assert done.err.startswith("error: FoundationVision/var/var_d16.pth is not in the cache")
    assert done.err.count("\n") == 1


def test_dry_run_says_what_would_come(actvar: Actvar) -> None:
    found = actvar("fetch", "var-d36", "--dry-run", "--json").json
    assert [f["file"] for f in found["files"]] == ["var_d36.pth", "vae_ch160v4096z32.pth"]
    assert found["bytes_to_fetch"] == 9_436_153_085 + 436_075_834
    assert found["bytes_free"] > 0
    shown = actvar("fetch", "var-d36", "--dry-run")
    assert shown.code == 0
    assert "9.87 GB to fetch, " in shown.out
    assert actvar("fetch", "var-d161", "--dry-run").code == 2


def test_dry_run_does_not_know_the_size_of_any_file(actvar: Actvar) -> None:
    assert "\n? to fetch, " in actvar("fetch", "hf://me/mine", "--dry-run").out
    found = actvar("fetch", "hf://me/mine", "--dry-run", "--json").json
    assert (found["bytes_to_fetch"], found["files"][0]["bytes"]) == (None, None)


def test_dry_run_of_what_ships_with_the_package(actvar: Actvar) -> None:
    assert actvar("fetch", "var-fashion", "--dry-run").out.startswith("var-fashion ships with actvar.\n0 B to fetch, ")
