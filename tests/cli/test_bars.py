"""Progress on stderr."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest

from actvar_cli.cli import bars
from actvar_cli.cli.bars import Bars, took
from actvar_cli.cli.out import console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_elsewhere_than_on_a_terminal_a_plain_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 0, 4, 11, 15, 30.0])
    monkeypatch.setattr(bars, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    stream = io.StringIO()
    with Bars(console(stream)).task("distilling", 40) as task:
        task.advance(10, "kl 0.5")
        task.advance(10)
        task.advance(20, "kl 0.1")
    assert stream.getvalue() == "  distilling: 50 %, 11 s left, kl 0.5\n  distilling: 30 s, kl 0.1\n"


def test_on_a_terminal_a_bar_that_leaves_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Bars(console(stream)).task("distilling", 4) as task:
        for _ in range(4):
            task.advance(1, "kl [0.5]")
    assert "\x1b[" in stream.getvalue()
    assert re.search(r"  distilling: \d\.\d s, kl \[0\.5\]\n$", stream.getvalue())


@pytest.mark.parametrize(
    ("total", "units", "line"),
    [
        pytest.param(0, 10, "  fetching:", id="of unknown size"),
        pytest.param(40, 0, "  fetching: 0 %", id="nothing has come for long"),
    ],
)
def test_how_long_it_will_take_is_not_said_where_nobody_can_know(
    monkeypatch: pytest.MonkeyPatch, total: int, units: int, line: str
) -> None:
    monkeypatch.setattr(bars, "EVERY", 0.0)
    stream = io.StringIO()
    with Bars(console(stream)).task("fetching", total) as task:
        task.advance(units)
    assert stream.getvalue().splitlines()[0] == line


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.04, "0.0 s"), (9.96, "10.0 s"), (12.4, "12 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_took(seconds: float, shown: str) -> None:
    assert took(seconds) == shown
