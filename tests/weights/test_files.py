from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from actvar_cli.errors import ActvarError, InputError
from actvar_cli.weights.files import file_digest, new_file, new_folder


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    with new_file(tmp_path / "sub" / "a") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "sub" / "a").exists()
    assert (tmp_path / "sub" / "a").read_text() == "new"
    assert names(tmp_path / "sub") == ["a"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_a_file_that_failed(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(error), new_file(tmp_path / "a", force=True) as temporary:
        temporary.write_text("half")
        raise error
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_existing_file_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    reason = r"a exists: choose another name, or replace it with --force$"
    with pytest.raises(InputError, match=reason), new_file(tmp_path / "a"):
        pytest.fail("the block must not run")
    with new_file(tmp_path / "a", force=True) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a").read_text() == "new"


def test_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists"), new_file(tmp_path / "a") as temporary:
        temporary.write_text("mine")
        (tmp_path / "a").write_text("theirs")
    assert (tmp_path / "a").read_text() == "theirs"


def test_folder_as_file_and_file_as_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a folder, not a file"), new_file(tmp_path, force=True):
        pass
    with pytest.raises(InputError, match="exists and is not a folder"), new_folder(tmp_path / "file", replaceable=()):
        pass
    with pytest.raises(InputError, match="cannot make the folder"), new_file(tmp_path / "file" / "sub" / "a"):
        pass


def test_failing_disk_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ActvarError, match=r"cannot write .*: No space left on device"), new_file(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_folder_appears_whole_or_not_at_all(tmp_path: Path, error: type[BaseException]) -> None:
    with new_folder(tmp_path / "out", replaceable=()) as temporary:
        (temporary / "a").write_text("1")
    assert names(tmp_path) == ["out"]
    with pytest.raises(error), new_folder(tmp_path / "out", replaceable=("a",), force=True) as temporary:
        (temporary / "a").write_text("2")
        raise error
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "1"


def test_where_a_folder_is_a_link_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "big")
    with new_folder(tmp_path / "out", replaceable=()) as temporary:
        (temporary / "a").write_text("1")
    assert names(tmp_path) == ["big", "out"]
    assert (tmp_path / "out").is_symlink() and (tmp_path / "big" / "a").read_text() == "1"


def test_folder_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="exists and is not empty"), new_folder(out, replaceable=()) as temporary:
        (temporary / "a").write_text("1")
        out.mkdir()
        (out / "thesis.tex").write_text("precious")
    assert names(out) == ["thesis.tex"]
    assert names(tmp_path) == ["out"]


def test_where_nobody_may_write_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever is root may always.
    monkeypatch.setattr(os, "access", lambda *_: False)
    message = f"cannot write in {tmp_path}: permission denied"
    with pytest.raises(InputError, match=message), new_file(tmp_path / "a"):
        pytest.fail("begun")
    with pytest.raises(InputError, match=message), new_folder(tmp_path / "b", replaceable=()):
        pytest.fail("begun")


def test_folder_is_replaced_only_if_nothing_foreign_is_in_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with new_folder(out, replaceable=()) as temporary:
        (temporary / "a").write_text("an empty folder may be used")
    with pytest.raises(InputError, match="out exists and is not empty"), new_folder(out, replaceable=("a",)):
        pass
    (out / "thesis.tex").write_text("precious")
    reason = r"holds 'thesis.tex', which is none of the files to be replaced: --force would delete"
    with pytest.raises(InputError, match=reason), new_folder(out, replaceable=("a",), force=True):
        pass
    (out / "thesis.tex").unlink()
    with new_folder(out, replaceable=("a",), force=True) as temporary:
        (temporary / "b").write_text("")
    assert names(out) == ["b"]
    assert names(tmp_path) == ["out"]
