"""The folder of a run, and what it remembers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from filelock import Timeout

from actvar_cli.errors import ActvarError, InputError
from actvar_cli.recipe import cache
from actvar_cli.recipe.cache import RunFolder, key_of


def finished(path: Path) -> RunFolder:
    folder = RunFolder(path / "run")
    with folder.begin():
        (folder.clear("convert") / "model.safetensors").write_text("weights")
        folder.finish("convert", key="k", verb="convert", seconds=1.5, inputs={"model": "d"}, result={"a": 1})
    return folder


def test_an_outcome_is_found_again(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    outcome = folder.outcome("convert")
    assert outcome is not None
    assert (outcome.key, outcome.result, outcome.seconds) == ("k", {"a": 1}, 1.5)
    assert list(outcome.outputs) == ["model.safetensors"]


def test_an_outcome_is_forgotten_when_a_file_of_it_changed(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    (folder.of_step("convert") / "model.safetensors").write_text("other")
    assert folder.outcome("convert") is None


def test_an_outcome_is_forgotten_when_a_file_of_it_is_gone_or_the_step_begins_again(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    (folder.of_step("convert") / "model.safetensors").unlink()
    assert folder.outcome("convert") is None
    folder = finished(tmp_path)
    folder.clear("convert")
    assert folder.outcome("convert") is None


def test_an_outcome_is_found_again_in_a_copy_whose_files_have_new_times(tmp_path: Path) -> None:
    folder = RunFolder(shutil.copytree(finished(tmp_path).path, tmp_path / "copy", copy_function=shutil.copyfile))
    copied = folder.of_step("convert") / "model.safetensors"
    os.utime(copied, ns=(1, 1))
    outcome = folder.outcome("convert")
    assert outcome is not None and outcome.outputs["model.safetensors"].mtime_ns == 1
    # Noted, so that a large file is not read at every start.
    assert '"mtime_ns":1' in (folder.path / "steps" / "convert.json").read_text()
    copied.write_text("WEIGHTS")
    assert folder.outcome("convert") is None


def test_recipe_and_record_belong_together(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.begin():
        assert not (folder.path / "recipe.yaml").exists()
        assert folder.published() == set()
        folder.record("version: 1\n", {"actvar": "1", "files": ["model.safetensors", "../of-others.txt", "/x"]})
    assert (folder.path / "recipe.yaml").read_text() == "version: 1\n"
    assert folder.published() == {"model.safetensors"}


def test_what_json_has_no_number_for_is_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.begin():
        folder.clear("distill")
        told = folder.finish(
            "distill", key="k", verb="distill", seconds=1.0, inputs={}, result={"grad_norm": float("inf")}
        )
    assert told.result == {"grad_norm": None}
    assert told == folder.outcome("distill")


def test_a_damaged_state_is_no_state(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    (folder.path / "steps" / "convert.json").write_text("{")
    assert folder.outcome("convert") is None


def test_clearing_keeps_only_what_it_is_told_to(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    place = folder.of_step("convert")
    (place / "a.checkpoint").write_text("")
    (place / "b.checkpoint").write_text("")
    folder.clear("convert", keep=["a.checkpoint"])
    assert [p.name for p in place.iterdir()] == ["a.checkpoint"]


def test_published_files_are_the_steps_own(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    assert folder.publish("convert", "model.safetensors", ours=())
    assert os.path.samefile(folder.path / "model.safetensors", folder.of_step("convert") / "model.safetensors")
    assert folder.publish("convert", "model.safetensors", ours=())
    assert folder.outcome("convert") is not None


def test_where_links_are_impossible_a_copy_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    folder = finished(tmp_path)
    assert folder.publish("convert", "model.safetensors", ours=())
    assert (folder.path / "model.safetensors").read_text() == "weights"


def test_what_others_put_at_the_top_stays(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    mine = folder.path / "model.safetensors"
    mine.write_text("mine")
    assert not folder.publish("convert", "model.safetensors", ours={"README.md"})
    assert mine.read_text() == "mine"
    assert folder.publish("convert", "model.safetensors", ours={"model.safetensors"})
    assert mine.read_text() == "weights"


def test_a_folder_is_not_a_runs_for_having_steps(tmp_path: Path) -> None:
    (tmp_path / "steps" / "export").mkdir(parents=True)
    (tmp_path / "run.json").write_text('{"steps": 1000}')
    with pytest.raises(InputError, match="is not the folder of a run"):
        RunFolder(tmp_path).check()
    (tmp_path / "run.json").write_text('{"actvar": "0.1.0", "steps": []}')
    RunFolder(tmp_path).check()
    shutil.rmtree(tmp_path / "steps")
    with pytest.raises(InputError, match="is not the folder of a run"):
        RunFolder(tmp_path).check()
    (tmp_path / "run.json").unlink()
    # Stopped before its first step was done.
    with RunFolder(tmp_path / "new").begin():
        pass
    RunFolder(tmp_path / "new").check()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path / "new").check()
    RunFolder(tmp_path).check()
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="exists and is not the folder of a run: choose another one with -o"):
        RunFolder(tmp_path).check()
    with pytest.raises(InputError, match="exists and is not a folder"):
        RunFolder(tmp_path / "thesis.tex").check()


def test_the_key_changes_with_what_matters_and_with_nothing_else() -> None:
    settings = {"experts": 8, "name": None, "seed": 0}
    key = key_of("convert", settings, {"model": "d"}, "cpu")
    assert key == key_of("convert", {**settings, "name": "eight"}, {"model": "d"}, "cpu")
    others = [
        key_of("convert", {**settings, "experts": 4}, {"model": "d"}, "cpu"),
        key_of("convert", {**settings, "seed": 1}, {"model": "d"}, "cpu"),
        key_of("convert", settings, {"model": "e"}, "cpu"),
        key_of("convert", settings, {"model": "d"}, "cuda"),
        key_of("distill", settings, {"model": "d"}, "cpu"),
    ]
    assert len({key, *others}) == 6


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    second = RunFolder(folder.path).begin()
    with folder.begin(), pytest.raises(ActvarError, match="another run is at work in"), second:
        pass
    with RunFolder(folder.path).begin():
        pass


def test_a_time_out_within_a_run_is_not_taken_for_a_second_run(tmp_path: Path) -> None:
    with pytest.raises(Timeout), RunFolder(tmp_path / "run").begin():
        raise Timeout("a lock of the Hub's cache")


def test_what_other_code_made_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of("distill", {}, {}, "cpu")
    monkeypatch.setattr(cache, "code_digest", lambda verb: f"another {verb}")
    assert key_of("distill", {}, {}, "cpu") != before
    monkeypatch.undo()
    assert cache.code_digest("convert") != cache.code_digest("distill")
