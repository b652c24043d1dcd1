from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actvar_cli.errors import ActvarError, InputError
from actvar_cli.model.config import Dial
from actvar_cli.weights import export as export_module
from actvar_cli.weights import fashion
from actvar_cli.weights.artefact import read_config, read_lineage
from actvar_cli.weights.card import About
from actvar_cli.weights.export import export, plan
from actvar_cli.weights.load import load
from actvar_cli.weights.published import write_published
from actvar_cli.weights.shards import INDEX
from tests.tiny import tiny_model


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_folder_gives_the_same_samples_also_elsewhere(tmp_path: Path) -> None:
    model = tiny_model(experts=True, token_gate=True)
    dials = (Dial(budget=0.7, threshold=0.2, cost=0.69), Dial(budget=0.9, threshold=-0.1, cost=0.9))
    model.config = model.config.model_copy(update={"dials": dials, "default_budget": 0.8})
    folder = export(model, tmp_path / "out", about=About(lineage={"steps": ["convert"]}))
    assert names(folder) == ["README.md", "config.json", "model.safetensors", "tokenizer.safetensors"]
    folder = folder.rename(tmp_path / "moved")
    again = load(folder)
    model.set_budget(0.8)
    assert again.threshold == model.threshold
    assert torch.equal(model.sample([0, 1], seed=1).images, again.sample([0, 1], seed=1).images)
    assert read_lineage(folder / "model.safetensors") == {"steps": ["convert"]}
    assert json.loads((folder / "config.json").read_text()) == json.loads(again.config.model_dump_json())
    assert again.config.tokenizer_reference is not None
    assert again.config.tokenizer_reference.name == "tokenizer.safetensors"


def test_a_disk_without_room_is_found_out_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    needed = sum(plan(model).values())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(ActvarError, match=r"the disk is too full: exporting tiny takes .* make room, or"):
        export(model, tmp_path / "out")
    assert names(tmp_path) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    assert export(model, tmp_path / "out").is_dir()


def test_dtype_and_further_files(tmp_path: Path) -> None:
    model = tiny_model()
    full = export(model, tmp_path / "full") / "model.safetensors"
    half = export(model, tmp_path / "half", dtype="bfloat16", files={"recipe.yaml": "version: 1\n"})
    assert (half / "model.safetensors").stat().st_size < 0.6 * full.stat().st_size
    assert (half / "recipe.yaml").read_text() == "version: 1\n"
    assert load(half).transformer.head.weight.dtype == torch.float32


def test_existing_folder(tmp_path: Path) -> None:
    model = tiny_model()
    folder = export(model, tmp_path / "out", files={"run.json": "{}"})
    with pytest.raises(InputError, match="out exists and is not empty"):
        export(model, folder)
    assert names(export(model, folder, force=True)) == names(folder)
    assert not (folder / "run.json").exists()
    (folder / "notes.txt").touch()
    with pytest.raises(InputError, match=r"holds 'notes.txt', which is none of the files to be replaced"):
        export(model, folder, force=True)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failed_export_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(export_module, "model_card", fail)
    with pytest.raises(error):
        export(tiny_model(), tmp_path / "out")
    assert names(tmp_path) == []


def test_the_data_sets_notice_goes_along_however_often_a_model_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    assert not (export(model, tmp_path / "a") / "NOTICE.md").exists()
    monkeypatch.setattr(fashion, "codebook", lambda: model.tokenizer.quantize.embedding.weight.detach())
    again = load(export(model, tmp_path / "b"))
    assert "Zalando" in (export(again, tmp_path / "c") / "NOTICE.md").read_text()
    written = write_published(tmp_path / "v.safetensors", again)
    assert [path.name for path in written] == ["v.safetensors", "v.tokenizer.safetensors", "v.NOTICE.md"]
    assert "Zalando" in written[-1].read_text()


def test_larger_than_a_shard_it_is_written_as_several(tmp_path: Path) -> None:
    model = tiny_model(experts=True)
    folder = export(model, tmp_path / "out", shard_size=60_000, about=About(lineage={"steps": ["convert"]}))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert names(folder) == sorted([*shards, "README.md", "config.json", INDEX, "tokenizer.safetensors"])
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in model.transformer.state_dict().values())
    assert all((folder / shard).stat().st_size < 80_000 for shard in shards)
    for part in (*shards, INDEX):
        assert read_config(folder / part).name == "tiny"
        assert read_lineage(folder / part) == {"steps": ["convert"]}
    for name in (folder, folder / INDEX):
        again = load(name)
        assert torch.equal(model.sample([0, 1], seed=1).images, again.sample([0, 1], seed=1).images)


def test_shards_and_a_single_file_replace_each_other(tmp_path: Path) -> None:
    model = tiny_model()
    whole = names(export(model, tmp_path / "out"))
    assert len(names(export(model, tmp_path / "out", shard_size=60_000, force=True))) > len(whole)
    export(model, tmp_path / "out", shard_size=120_000, force=True)
    assert names(export(model, tmp_path / "out", force=True)) == whole


@pytest.mark.parametrize("options", [{}, {"shard_size": 60_000, "dtype": "float16"}])
def test_the_plan_knows_every_file_and_its_bytes(tmp_path: Path, options: dict[str, Any]) -> None:
    model, files = tiny_model(experts=True), {"recipe.yaml": "über: 1\n"}
    folder = export(model, tmp_path / "out", files=files, **options)
    assert plan(model, files=files, **options) == {p.name: p.stat().st_size for p in folder.iterdir()}
