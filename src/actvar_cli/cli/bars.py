"""Progress for a person: a bar where stderr is a terminal, a plain line now and then where it is not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from actvar_cli.progress import Progress, Task

if TYPE_CHECKING:
    from rich.console import Console

EVERY = 10.0
"""Seconds between two plain lines of one task."""


class Bars(Progress):
    """Draws tasks on ``console``; each leaves one line, with how long it took, when it is done."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = console.is_terminal and not console.is_dumb_terminal

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Task]:
        """A task that is over when the ``with`` block ends."""
        began = time.monotonic()
        if self.live:
            with _bar(self.console, label, total) as bar:
                yield bar
            note = bar.note
        else:
            line = _Line(self, label, total)
            yield line
            note = line.note
        self.say(f"  {label}: {took(time.monotonic() - began)}{f', {note}' if note else ''}")

    def say(self, message: str) -> None:
        """A line that stays."""
        self.console.print(message, markup=False, soft_wrap=True)


class _Line(Task):
    """A task that says how far it is when some time has passed."""

    def __init__(self, bars: Bars, label: str, total: int) -> None:
        self.bars, self.label, self.total = bars, label, total
        self.done, self.note = 0, ""
        self.began = self.spoke = time.monotonic()

    def advance(self, units: int = 1, note: str = "") -> None:
        """``units`` more are done."""
        self.done += units
        self.note = note or self.note
        now = time.monotonic()
        if now - self.spoke < EVERY or self.done == self.total:
            return
        self.spoke = now
        share = f" {100 * self.done // self.total} %" if self.total else ""
        known = self.total and self.done
        left = f", {took((now - self.began) * (self.total - self.done) / self.done)} left" if known else ""
        note = f", {self.note}" if self.note else ""
        self.bars.say(f"  {self.label}:{share}{left}{note}")


@contextmanager
def _bar(console: Console, label: str, total: int) -> Iterator[_Bar]:
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("  {task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("/ -"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as drawn:
        identity = drawn.add_task(label, total=total or None, note="")

        def advance(units: int, note: str) -> None:
            drawn.update(identity, advance=units, note=note)

        yield _Bar(advance)


class _Bar(Task):
    """A task that moves a drawn bar."""

    def __init__(self, move: Callable[[int, str], None]) -> None:
        self.move, self.note = move, ""

    def advance(self, units: int = 1, note: str = "") -> None:
        """``units`` more are done."""
        self.note = note or self.note
        self.move(units, self.note)


def took(seconds: float) -> str:
    """Time as a person reads it: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
