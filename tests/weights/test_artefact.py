from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from actvar_cli.errors import ActvarError, InputError
from actvar_cli.model.config import TokenizerReference
from actvar_cli.model.sampling import ActVAR
from actvar_cli.weights import artefact
from actvar_cli.weights.artefact import file_digest, read_config, read_lineage, read_metadata, save
from actvar_cli.weights.load import load
from tests.tiny import tiny_model

KINDS: list[dict[str, Any]] = [
    {},
    {"shared_aln": True},
    {"experts": True},
    {"experts": True, "token_gate": True, "shared_aln": True},
]


def same_samples(a: ActVAR, b: ActVAR, threshold: float | None) -> bool:
    a.threshold = b.threshold = threshold
    return torch.equal(a.sample([0, 1, 2], seed=7).images, b.sample([0, 1, 2], seed=7).images)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(tmp_path: Path, kind: dict[str, Any]) -> None:
    model = tiny_model(**kind)
    path = save(tmp_path / "m.safetensors", model, {"step": "test"})
    again = load(path)
    assert path == tmp_path / "m.safetensors"
    assert again.config.model_copy(update={"tokenizer_reference": None}) == model.config
    assert same_samples(model, again, None)
    if kind.get("experts"):
        assert same_samples(model, again, 0.0)


def test_loaded_model_can_be_trained_and_saved_over_its_own_file(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", tiny_model(), {})
    model = load(path)
    parameter = model.transformer.head.weight
    assert parameter.requires_grad
    with torch.no_grad():
        parameter.add_(1.0)
    save(path, model, {}, force=True)
    assert torch.equal(load(path).transformer.head.weight, parameter)


def test_the_file_describes_itself(tmp_path: Path) -> None:
    model = tiny_model(experts=True)
    path = save(tmp_path / "m.safetensors", model, {"made_by": "convert", "seed": 3})
    with safe_open(path, "pt") as file:
        metadata, keys = file.metadata(), set(file.keys())
    assert set(metadata) == {"format", "actvar.config", "actvar.lineage"}
    assert metadata["format"] == "pt"
    assert json.loads(metadata["actvar.config"])["experts"]["num_experts"] == 4
    assert keys == set(model.transformer.state_dict())
    assert read_lineage(path) == {"made_by": "convert", "seed": 3}
    reference = read_config(path).tokenizer_reference
    assert reference == TokenizerReference(
        name="m.tokenizer.safetensors", sha256=file_digest(tmp_path / "m.tokenizer.safetensors")
    )


def test_permissions_are_the_users(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    path = save(tmp_path / "m.safetensors", tiny_model(), {})
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_known_tokenizer_is_not_written_again(tmp_path: Path) -> None:
    model = tiny_model()
    reference = TokenizerReference(name="var-fashion", sha256="0" * 64)
    model.config = model.config.model_copy(update={"tokenizer_reference": reference})
    path = save(tmp_path / "m.safetensors", model, {})
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    assert read_config(path).tokenizer_reference == reference


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_short_floats_are_widened_when_read(tmp_path: Path, dtype: str, tolerance: float) -> None:
    model = tiny_model(experts=True)
    path = save(tmp_path / "m.safetensors", model, {}, dtype=dtype)
    stored = load_file(path)
    assert stored["head.weight"].dtype == getattr(torch, dtype)
    assert stored["blocks.0.ffn.permutation"].dtype == torch.int64
    again = load(path)
    assert again.transformer.head.weight.dtype == torch.float32
    torch.testing.assert_close(again.transformer.head.weight, model.transformer.head.weight, rtol=tolerance, atol=1e-6)
    assert torch.equal(again.tokenizer.quantize.embedding.weight, model.tokenizer.quantize.embedding.weight)


def test_unknown_dtype_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^unknown dtype 'bfloat' \(did you mean 'bfloat16'\?\): one of float32, "):
        save(tmp_path / "m.safetensors", tiny_model(), {}, dtype="bfloat")
    assert list(tmp_path.iterdir()) == []


def test_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_text("mine")
    with pytest.raises(InputError, match=r"m.safetensors exists"):
        save(path, tiny_model(), {})
    assert path.read_text() == "mine"
    save(path, tiny_model(), {}, force=True)
    assert read_config(path).name == "tiny"


def test_interrupted_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(artefact, "write_safetensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "m.safetensors", tiny_model(), {})
    assert list(tmp_path.iterdir()) == []


def test_newer_format_is_a_clear_error(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", tiny_model(), {})
    config = json.loads(read_config(path).model_dump_json()) | {"format_version": 2, "unheard_of": 1}
    save_file(load_file(path), path, metadata={"format": "pt", "actvar.config": json.dumps(config)})
    for read in (read_config, load):
        with pytest.raises(
            InputError, match=r"has format version 2, this actvar reads up to 1: install a newer actvar$"
        ):
            read(path)


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "x"}', '{"format_version": "a"}'])
def test_damaged_config(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"pos_1LC": torch.zeros(1)}, path, metadata={"actvar.config": text})
    with pytest.raises(InputError, match=r"m.safetensors has a damaged 'actvar.config': .+$") as caught:
        read_config(path)
    assert "\n" not in str(caught.value)


def test_read_config_of_what_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^no such file: "):
        read_config(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="is not an actvar artefact"):
        read_config(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="is not a readable safetensors file"):
        read_config(tmp_path / "b.safetensors")


@pytest.mark.parametrize("text", ["{", "[1]", "null", '{"steps": null}'])
def test_damaged_lineage(tmp_path: Path, text: str) -> None:
    path = save(tmp_path / "m.safetensors", tiny_model(), {})
    tensors, metadata = load_file(path), read_metadata(path)
    save_file(tensors, path, metadata={**metadata, "actvar.lineage": text})
    with pytest.raises(InputError, match=r"m\.safetensors has a damaged 'actvar\.lineage': "):
        read_lineage(path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ActvarError, match="cannot make the folder"):
        save(tmp_path / "file" / "sub" / "m.safetensors", tiny_model(), {})
