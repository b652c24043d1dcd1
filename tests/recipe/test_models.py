"""Digests of models by their names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from actvar_cli.progress import Progress
from actvar_cli.recipe.models import about, digest_of, named
from actvar_cli.weights import zoo
from actvar_cli.weights.artefact import save
from actvar_cli.weights.files import file_digest
from actvar_cli.weights.published import published_state
from actvar_cli.weights.zoo import HubFile
from tests.tiny import tiny_model


class Said(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture(params=["var.safetensors", "var.pth"])
def plain(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A plain state dict, which says nothing of its tokenizer."""
    state, path = published_state(tiny_model()), tmp_path / str(request.param)
    torch.save(state, path) if path.suffix == ".pth" else save_file(state, path)
    return path


def test_the_tokenizer_beside_a_plain_state_dict_counts(plain: Path) -> None:
    alone = digest_of(str(plain), Progress())
    assert alone == file_digest(plain)
    beside = plain.with_name("tokenizer.safetensors")
    save_file(tiny_model().tokenizer.state_dict(), beside)
    assert digest_of(str(plain), Progress()) == f"{alone}+{file_digest(beside)}"


def test_an_artefact_names_its_tokenizer_itself(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", tiny_model(), {"steps": [{"verb": "convert"}]})
    assert digest_of(str(path), Progress()) == file_digest(path)
    assert named(str(path), device="cpu", progress=Progress()).lineage == {"steps": [{"verb": "convert"}]}


def test_a_plain_state_dict_has_no_lineage(plain: Path) -> None:
    assert named(str(plain), device="cpu", progress=Progress()).lineage == {}


def test_a_superseded_file_is_pointed_out(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, digest = Said(), file_digest(plain)
    digest_of(str(plain), said)
    assert said.lines == []
    entry = zoo.KNOWN["var-d16"]
    assert isinstance(entry.transformer, HubFile)
    old = replace(entry, transformer=replace(entry.transformer, superseded=(digest[:8],)))
    monkeypatch.setitem(zoo.KNOWN, "var-d16", old)
    digest_of(str(plain), said)
    what = f"an old var_d16.pth (sha256 {digest[:8]}…) that its authors replaced in April 2024"
    assert said.lines == [f"warning: {plain} is {what}: `actvar fetch` brings the present one"]


def test_what_was_made_from_a_known_model_names_it(tmp_path: Path) -> None:
    lineage = {"steps": [{"step": "convert", "source": "var-d16"}, {"step": "distill", "teacher": "var-d16"}]}
    path = save(tmp_path / "m.safetensors", tiny_model(experts=True), lineage)
    card = about(named(str(path), device="cpu", progress=Progress()), [])
    assert (card.base_model, card.license) == ("FoundationVision/var", "mit")
    unknown = save(tmp_path / "n.safetensors", tiny_model(), {"steps": []})
    assert about(named(str(unknown), device="cpu", progress=Progress()), []).base_model is None
