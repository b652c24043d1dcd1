"""actvar profile."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actvar_cli.cli.profile import _compared
from actvar_cli.model import products
from tests.cli.conftest import Actvar

FEW = ("--batch", "2", "--repeats", "1")


def test_dense_and_compressed(actvar: Actvar, models: Path) -> None:
    done = actvar("profile", models / "compressed.safetensors", *FEW, "-v")
    assert done.code == 0
    lines = [line.split() for line in done.out.splitlines() if line.strip()]
    assert ["dense", "compressed"] in lines
    assert [line[:2] for line in lines if line[:1] == ["3"]] == [["3", "x"]]
    assert any(line[0] == "blocks.0.ffn.fc1" or line[0].startswith("blocks.0") for line in lines)
    assert "FLOPs = 2 x MACs" in done.out


def test_a_dense_model_has_one_column(actvar: Actvar, models: Path) -> None:
    done = actvar("profile", models / "dense.safetensors", *FEW)
    assert done.code == 0
    assert "compressed" not in done.out


def test_json(actvar: Actvar, models: Path) -> None:
    found = actvar("profile", models / "compressed.safetensors", *FEW, "--budget", "0.8", "--json").json
    assert found["budget"] == 0.8
    assert 0 < found["cost"] < 1.2
    assert abs(found["compressed"]["difference"]) < 0.005
    assert abs(found["compressed"]["difference_torch"]) < 0.005
    assert found["dtype"] == "float32"
    assert sum(found["dense"]["scales"]) == pytest.approx(found["dense"]["transformer_flops"])


@pytest.mark.parametrize(
    ("fast", "product_dtype", "types"),
    [(True, "bfloat16", "bfloat16"), (False, "float32", "bfloat16 multiplied in float32")],
)
def test_by_default_the_batch_follows_the_size(
    actvar: Actvar, models: Path, monkeypatch: pytest.MonkeyPatch, fast: bool, product_dtype: str, types: str
) -> None:
    from actvar_cli.profile.profile import Profile  # here, as tests/model/kernels wants to import Triton first

    monkeypatch.setattr(products, "FAST", (torch.float32, torch.bfloat16) if fast else (torch.float32,))
    found = actvar("profile", models / "dense.safetensors", "--repeats", "1", "--dtype", "bfloat16", "--json").json
    assert (found["batch"], found["dtype"], found["product_dtype"]) == (16, "bfloat16", product_dtype)
    assert Profile.model_validate(found).types == types
    assert found["dense"]["difference"] == found["dense"]["difference_torch"] == 0


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("dense", ["--budget", "1.5"], "--budget must be less than or equal to 1, not 1.5"),
        ("dense", ["--budget", "0"], "--budget must be greater than 0, not 0.0"),
        ("dense", ["--budget", "0.8"], "tiny is dense: it has no experts to leave out, convert it first"),
        ("compressed", ["--budget", "0.1"], "budget 0.1 is outside the calibrated range 0.7 to 0.8 (or 1 for dense)"),
        ("compressed", ["--batch", "0"], "--batch must be greater than or equal to 1, not 0"),
        ("missing", [], "no such file: "),
    ],
)
def test_wrong_input(actvar: Actvar, models: Path, model: str, arguments: list[str], message: str) -> None:
    done = actvar("profile", models / f"{model}.safetensors", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {message}")
    assert done.err.count("\n") == 1


def test_where_the_time_goes(actvar: Actvar, models: Path) -> None:
    done = actvar("profile", models / "compressed.safetensors", *FEW, "--measure")
    header = ["part,", "time", "per", "image", "dense", "compressed", "speed-up", "efficiency"]
    lines = [line.split() for line in done.out.splitlines()]
    assert header in lines and ["scale,", *header[1:]] in lines
    by_part = {line[0]: line for line in lines[lines.index(header) :] if line}
    assert {"attention", "ffn", "router", "head", "rest", "tokenizer"} <= set(by_part)
    # A dense model has no router: there is nothing to compare it with.
    assert len(by_part["attention"]) == 7 and len(by_part["router"]) == 3
    found = actvar("profile", models / "compressed.safetensors", *FEW, "--measure", "--json").json
    (dense_ffn, ffn), (dense_work, work) = (
        [found[mode][what] for mode in ("dense", "compressed")] for what in ("times", "parts")
    )
    ratio = dense_ffn["parts"]["ffn"] / ffn["parts"]["ffn"]
    shown = _compared("ffn", [dense_ffn["parts"]["ffn"], ffn["parts"]["ffn"]], [dense_work["ffn"], work["ffn"]])
    assert shown[3:] == (f"{ratio:.2f}", f"{ratio * work['ffn'] / dense_work['ffn']:.2f}")
    dense = actvar("profile", models / "dense.safetensors", *FEW, "--measure", "--json").json
    assert dense["dense"]["times"]["parts"]["ffn"] > 0
