"""How long work tells what it is doing, without knowing who watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Task:
    """One piece of work with a known number of units; this one is silent."""

    def advance(self, units: int = 1, note: str = "") -> None:
        """``units`` more are done; ``note`` is a short remark such as the current loss."""


class Progress:
    """Opens tasks; this one is silent. The command line passes one that draws a bar on stderr."""

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Task]:
        """A task that is over when the ``with`` block ends."""
        yield Task()

    def say(self, message: str) -> None:
        """A line worth keeping after the bars are gone."""
