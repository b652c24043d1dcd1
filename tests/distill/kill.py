"""Stops a training in the middle, as Ctrl-C would."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

from actvar_cli.progress import Progress, Task


class Killed(Exception):
    pass


class KillAt(Progress):
    """Stops the training in the middle of a stage, as Ctrl-C would."""

    def __init__(self, stage: str, step: int) -> None:
        self.stage, self.step = stage, step

    @contextmanager
    def task(self, label: str, total: int) -> Any:
        task = Task()
        if label == f"distilling {self.stage}":
            seen = 0

            def advance(units: int = 1, note: str = "") -> None:
                nonlocal seen
                seen += units
                if seen > self.step:
                    raise Killed

            task.advance = advance  # type: ignore[method-assign]
        yield task
