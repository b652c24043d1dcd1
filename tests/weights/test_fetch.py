"""Models by their names: what is known, what is here, what would come, what is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from actvar_cli.errors import InputError
from actvar_cli.weights.export import export
from actvar_cli.weights.fetch import fetch, list_models, parse_hub_name
from actvar_cli.weights.zoo import ASSETS, KNOWN
from tests.tiny import tiny_model
from tests.weights.hub_client import environment
from tests.weights.hub_server import serve

LOAD = """
import sys, actvar_cli
model = actvar_cli.load(sys.argv[1])
print(model.config.name, model.sample([0, 1], seed=1).tokens.tolist())
"""


@pytest.mark.parametrize("name", ["hf://me/tiny", "hf://me/tiny@main/model.safetensors", "hf://me/tiny/plain/var.pth"])
def test_loading_from_a_repository(tmp_path: Path, name: str) -> None:
    model = tiny_model()
    folder = export(model, tmp_path / "out")
    torch.save({**model.transformer.state_dict(), "lvl_1L": model.transformer.lvl_1L}, tmp_path / "var.pth")
    files = {f"me/tiny/{p.name}": p.read_bytes() for p in folder.iterdir()}
    files["me/tiny/plain/var.pth"] = (tmp_path / "var.pth").read_bytes()
    # Beside the original by the original's name: the converted file has another one.
    files["me/tiny/plain/var.tokenizer.safetensors"] = files["me/tiny/tokenizer.safetensors"]
    tokens = model.sample([0, 1], seed=1).tokens.tolist()
    with serve(files) as hub:
        done = subprocess.run(
            [sys.executable, "-c", LOAD, name],
            env=environment(tmp_path / "hf", hub.url),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    assert done.stdout == f"tiny {tokens}\n"


def test_names() -> None:
    assert parse_hub_name("hf://a/b").file == "model.safetensors"
    file = parse_hub_name("hf://a/b@refs%2Fpr%2F1/c/d.pth")
    assert (file.repo, file.revision, file.file) == ("a/b", "refs/pr/1", "c/d.pth")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://a", "'hf://a' is no Hub name: write hf://owner/repo[@revision][/file]"),
        ("hf://a/b--c/d.pth", "'a/b--c' is no repository name: "),
        ("hf://a/b/../../c.pth", "'hf://a/b/../../c.pth' is no Hub name: its file leaves the repository"),
    ],
)
def test_names_that_are_none(name: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_hub_name(name)
    assert str(caught.value).startswith(message)


def test_unknown_name() -> None:
    with pytest.raises(InputError, match=r"^unknown model 'var-fasion' \(did you mean 'var-fashion'\?\): `actvar ls`"):
        fetch("var-fasion")


def test_listing_needs_no_network() -> None:
    listed = {m.name: m for m in list_models()}
    assert list(listed) == list(KNOWN)
    assert listed["var-d16"].size == 1_243_116_346
    assert not listed["var-d16"].cached
    assert listed["var-fashion"].cached == (ASSETS / "var-fashion.safetensors").is_file()
