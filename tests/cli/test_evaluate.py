"""actvar evaluate."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Actvar
from tests.evaluate.fashion import stand_in
from tests.recipe import tiny_files


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_files.save_fashion(tmp_path_factory.mktemp("fashion"))


@pytest.fixture(autouse=True)
def _stand_in_assets(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)


def test_the_table(actvar: Actvar, fashion: tuple[Path, Path]) -> None:
    teacher, student = fashion
    done = actvar("evaluate", student, "--against", teacher, "-n", "20", "--batch", "10")
    assert done.code == 0
    for row in ("cost, transformer", "Fréchet distance", "class accuracy", "KL to the teacher, nats per token"):
        assert row in done.out
    assert "20 images are few" in done.err


def test_json_and_the_same_again(actvar: Actvar, fashion: tuple[Path, Path]) -> None:
    teacher, student = fashion
    command = ("evaluate", student, "--against", teacher, "-n", "20", "--budget", "0.8", "--json", "-q")
    first, second = actvar(*command), actvar(*command)
    assert first.err == ""
    assert first.json["distance_ratio"] == first.json["student"]["distance"] / first.json["teacher"]["distance"]
    assert first.json["student"]["threshold"] == -0.1
    assert first.json["agreement"] == second.json["agreement"]


def test_what_is_asked_of_the_sampling_reaches_it(actvar: Actvar, fashion: tuple[Path, Path]) -> None:
    teacher, student = fashion
    command = ("evaluate", student, "--against", teacher, "-n", "10", "--json", "-q")
    told = ("--seed", "3", "--cfg", "2.5", "--top-k", "7", "--top-p", "0.9")
    found = actvar(*command, *told).json
    assert {key: found[key] for key in ("seed", "cfg", "top_k", "top_p")} == {
        **{"seed": 3, "cfg": 2.5, "top_k": 7, "top_p": 0.9}
    }
    # Each of them makes other pictures.
    distances = [actvar(*command, *told[i : i + 2]).json["teacher"]["distance"] for i in (0, 2, 4, 6)]
    assert len({actvar(*command).json["teacher"]["distance"], *distances}) == 5


def test_gates(actvar: Actvar, fashion: tuple[Path, Path]) -> None:
    teacher, student = fashion
    command = ("evaluate", student, "--against", teacher, "-n", "20", "--json", "-q")
    met = actvar(*command, "--max-distance-ratio", "1000", "--max-cost", "2")
    assert met.code == 0
    missed = actvar(*command, "--max-cost", "0.01")
    assert missed.code == 3
    assert missed.json["student"]["cost"] > 0.01
    assert missed.err.startswith("error: gate not met: cost 0.")


def test_pictures_without_a_feature_network_are_compared_by_agreement(actvar: Actvar, models: Path) -> None:
    command = ("evaluate", models / "compressed.safetensors", "--against", models / "dense.safetensors", "-n", "4")
    done = actvar(*command)
    assert done.code == 0
    assert "Fréchet" not in done.out
    assert "no feature network is shipped" in done.err
    done = actvar(*command, "--max-distance-ratio", "1.1", "-q")
    assert done.code == 3
    assert done.err == (
        "error: gate not met: the distance ratio was not measured: no feature network is shipped for these pictures\n"
    )


def test_wrong_input(actvar: Actvar, models: Path, fashion: tuple[Path, Path]) -> None:
    dense = models / "dense.safetensors"
    done = actvar("evaluate", dense)
    assert (done.code, done.err) == (2, "error: missing option '--against': see `actvar evaluate --help`\n")
    done = actvar("evaluate", dense, "--against", "var-fashon")
    assert done.code == 2
    assert done.err.startswith("error: unknown model 'var-fashon' (did you mean 'var-fashion'?)")
    done = actvar("evaluate", dense, "--against", dense, "-n", "1")
    assert (done.code, done.err) == (2, "error: --count must be greater than or equal to 2, not 1\n")
    done = actvar("evaluate", dense, "--against", fashion[0], "-n", "4", "-q")
    assert done.code == 2
    assert "cannot be compared: their tokenizers or classes differ" in done.err
