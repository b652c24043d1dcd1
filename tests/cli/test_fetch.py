"""actvar fetch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actvar_cli.progress import Progress
from actvar_cli.weights import converted, download, fetch, zoo
from actvar_cli.weights.export import export
from actvar_cli.weights.files import file_digest
from actvar_cli.weights.published import published_state
from actvar_cli.weights.shards import INDEX
from actvar_cli.weights.zoo import ASSETS, HubFile
from tests.cli.conftest import Actvar
from tests.tiny import tiny_model

shipped = pytest.mark.skipif(not (ASSETS / "var-fashion.safetensors").is_file(), reason="needs the embedded model")


@shipped
def test_the_embedded_model_is_here_already(actvar: Actvar) -> None:
    done = actvar("fetch", "var-fashion", "-q")
    assert (done.code, done.err) == (0, "")
    assert Path(done.out.strip()) == zoo.ASSETS / "var-fashion.safetensors"
    assert actvar("fetch", "var-fashion", "--json").json["path"] == done.out.strip()


def test_the_size_of_shards_is_that_of_all(actvar: Actvar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export(tiny_model(), tmp_path / "shards", shard_size=60_000)
    monkeypatch.setattr(fetch, "fetch", lambda *_, **__: folder / INDEX)
    found = actvar("fetch", "var-d16", "--json").json
    assert found["bytes"] == sum(path.stat().st_size for path in folder.glob("model*"))
    assert found["bytes"] > 100_000


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
    assert found["bytes_to_fetch"] == found["bytes_to_convert"] == 9_436_153_085 + 436_075_834
    assert found["bytes_free"] > 0
    shown = actvar("fetch", "var-d36", "--dry-run")
    assert shown.code == 0
    assert "9.87 GB to fetch, 9.87 GB more as safetensors, " in shown.out
    assert actvar("fetch", "var-d161", "--dry-run").code == 2


def test_dry_run_does_not_know_the_size_of_any_file(actvar: Actvar) -> None:
    assert "\n? to fetch, 0 B more as safetensors, " in actvar("fetch", "hf://me/mine", "--dry-run").out
    assert "\n? to fetch, ? more as safetensors, " in actvar("fetch", "hf://me/mine/a.pth", "--dry-run").out
    found = actvar("fetch", "hf://me/mine", "--dry-run", "--json").json
    assert (found["bytes_to_fetch"], found["files"][0]["bytes"]) == (None, None)


def test_dry_run_of_what_ships_with_the_package(actvar: Actvar) -> None:
    assert actvar("fetch", "var-fashion", "--dry-run").out.startswith(
        "var-fashion ships with actvar.\n0 B to fetch, 0 B more as safetensors, "
    )


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[HubFile, Path]:
    """var-d16 is a tiny model, as .pth in the Hub's cache; its tokenizer is not there."""
    hub = download.hub().constants
    monkeypatch.setattr(hub, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    torch.save(published_state(tiny_model()), tmp_path / "var_d16.pth")
    entry, digest = zoo.KNOWN["var-d16"], file_digest(tmp_path / "var_d16.pth")
    assert isinstance(entry.transformer, HubFile)
    file = replace(entry.transformer, sha256=digest)
    monkeypatch.setitem(zoo.KNOWN, "var-d16", replace(entry, transformer=file))
    blob = download._blob(file, digest)
    blob.parent.mkdir(parents=True)
    return file, (tmp_path / "var_d16.pth").rename(blob)


def test_what_is_here_and_not_converted(actvar: Actvar, original: tuple[HubFile, Path]) -> None:
    file, path = original
    assert next(line for line in actvar("ls").out.splitlines() if "var-d16" in line).split()[4:6] == [
        "not",
        "converted",
    ]
    (d16,) = (m for m in actvar("ls", "--json").json["models"] if m["name"] == "var-d16")
    assert (d16["cached"], d16["converted"], d16["path"]) == (True, False, str(path))
    found = actvar("fetch", "var-d16", "--dry-run", "--json").json
    assert (found["bytes_to_fetch"], found["bytes_to_convert"]) == (436_075_834, file.size + 436_075_834)
    assert "not converted" in actvar("fetch", "var-d16", "--dry-run").out


def test_what_is_here_and_converted(actvar: Actvar, original: tuple[HubFile, Path]) -> None:
    file, path = original
    made = converted.convert(path, file, None, file.sha256, Progress())
    path.unlink()
    (d16,) = (m for m in actvar("ls", "--json").json["models"] if m["name"] == "var-d16")
    assert (d16["cached"], d16["converted"], d16["path"]) == (True, True, str(made))
    found = actvar("fetch", "var-d16", "--dry-run", "--json").json
    assert (found["bytes_to_fetch"], found["bytes_to_convert"]) == (436_075_834, 436_075_834)
    assert actvar("fetch", "var-d16", "--dry-run", "--force", "--json").json["bytes_to_convert"] == (
        file.size + 436_075_834
    )


def test_what_arrived_before_need_not_come_again(actvar: Actvar, original: tuple[HubFile, Path]) -> None:
    file, path = original
    path.unlink()
    partial = download._partial(file, file.sha256)
    with partial.open("wb") as stream:
        stream.truncate(file.size // 4)
    found = actvar("fetch", "var-d16", "--dry-run", "--json").json
    assert found["files"][0]["bytes_arrived"] == file.size // 4
    assert found["files"][0]["bytes_to_fetch"] == file.size - file.size // 4
    assert "24 %" in actvar("fetch", "var-d16", "--dry-run").out


def test_it_prints_the_path_of_the_converted_file(actvar: Actvar, original: tuple[HubFile, Path]) -> None:
    file, path = original
    # The tokenizer is another file of the same repository, here the same tiny model.
    entry = zoo.KNOWN["var-d16"]
    zoo.KNOWN["var-d16"] = replace(entry, tokenizer=file)
    made = path.parents[3] / "actvar" / "FoundationVision--var" / f"var_d16-{file.sha256[:8]}.safetensors"
    done = actvar("fetch", "var-d16")
    assert (done.code, done.out) == (0, f"{made}\n")
    assert [line.split(":")[0] for line in done.err.splitlines()] == [
        "  checking var_d16.pth",
        "  converting var_d16.pth",
    ]
    again = actvar("fetch", "var-d16", "--json")
    assert again.json == {"path": str(made), "name": "var-d16", "bytes": made.stat().st_size}
    assert again.err == ""
