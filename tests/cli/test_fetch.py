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
