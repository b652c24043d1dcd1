"""A command's output for a person, a program and a shell variable."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from actvar_cli.cli.out import Out, table

DATA = {"cost": 0.7, "lost": float("nan"), "far": [float("inf")], "place": Path("b")}


def test_json_is_one_object_without_numbers_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    Out(as_json=True, quiet=True).result(DATA, "shown", path=Path("a"))
    assert json.loads(capsys.readouterr().out) == {"path": "a", "cost": 0.7, "lost": None, "far": [None], "place": "b"}


def test_quiet_is_the_path_alone(capsys: pytest.CaptureFixture[str]) -> None:
    out = Out(quiet=True)
    out.result(DATA, "shown", path=Path("a [b]"))
    out.result(DATA, "shown")
    out.hint("nothing")
    with out.progress.task("work", 1):
        pass
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("a [b]\n", "")


def test_a_person_reads_tables_and_text_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    path = "x" * 300
    Out().result(DATA, table("what", "dense", rows=[("cost [bold]", "1.0"), ("time", "20 ms")], title="m[/v2]"), path)
    lines = capsys.readouterr().out.splitlines()
    assert path in lines
    assert "m[/v2]" in [line.strip() for line in lines]
    assert [line.split() for line in lines if "[bold]" in line] == [["cost", "[bold]", "1.0"]]
    # Figures stand to the right.
    assert [line.rstrip().endswith(("dense", "1.0", "20 ms")) for line in lines if line.strip() and "─" not in line][:3]


def test_what_goes_on_is_told_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    out = Out()
    with out.progress.task("work", 1):
        pass
    out.hint("go on")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"  work: \d\.\d s\ngo on\n", captured.err)
