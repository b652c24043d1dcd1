"""What a command says: its result on stdout, for a person, a program or a shell variable; all else on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from actvar_cli.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDE = 200
"""Columns where there is no terminal: no table is broken for a file or a pipe."""


def console(stream: TextIO) -> Console:
    """A console on ``stream``: colours only where it is a terminal, whatever the environment would force."""
    from rich.console import Console

    if stream.isatty():
        return Console(file=stream, highlight=False)
    return Console(file=stream, highlight=False, force_terminal=False, width=WIDE)


class Out:
    """One command's output. ``as_json``: one JSON object. ``quiet``: the path alone, and no progress."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet

    @cached_property
    def progress(self) -> Progress:
        """Where long work tells what it is doing."""
        if self.quiet:
            return Progress()
        from actvar_cli.cli.bars import Bars

        return Bars(console(sys.stderr))

    def result(
        self, data: dict[str, Any], *shown: Table | str, path: Path | None = None, names: Sequence[str] = ()
    ) -> None:
        """The command's result: ``data`` for a program, ``shown`` for a person, ``path`` or ``names`` with ``-q``.

        ``path`` is part of the data too. Without path and names, ``-q`` prints nothing unless JSON was asked for.
        """
        if self.as_json:
            self._print(json.dumps(_plain({"path": str(path), **data} if path else data), indent=2, ensure_ascii=False))
        elif self.quiet:
            for line in (str(path),) if path else names:
                self._print(line)
        else:
            stdout = console(sys.stdout)
            for part in shown:
                # Text goes out as it is: a path must not be wrapped at the edge of the terminal.
                stdout.print(part, markup=False, soft_wrap=isinstance(part, str))
            sys.stdout.flush()

    def hint(self, message: str) -> None:
        """A line on stderr that is no result."""
        if not self.quiet:
            print(message, file=sys.stderr)

    @staticmethod
    def _print(text: str) -> None:
        # Flushed here, where a closed pipe can still be answered for.
        print(text, flush=True)


def table(*headers: str, rows: Sequence[Sequence[str]], title: str | None = None) -> Table:
    """A table for a person: text to the left, and every column but the first to the right if it holds figures."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    heading = None if title is None else Text(title)
    made = Table(box=box.SIMPLE_HEAD, title=heading, title_justify="left", title_style="bold", pad_edge=False)
    for column, header in enumerate(headers):
        figures = column > 0 and all(_is_figure(row[column]) for row in rows)
        made.add_column(Text(header), justify="right" if figures else "left", no_wrap=column == 0)
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def _is_figure(cell: str) -> bool:
    return not cell or cell[0].isdigit() or cell[0] in "+-" or cell == "?"


def _plain(value: Any) -> Any:
    """What JSON can hold: a number that is none becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
