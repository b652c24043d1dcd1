"""Knowing a file again, without reading it where its size and time tell."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from actvar_cli.model.config import Frozen
from actvar_cli.weights.files import file_digest


class Stamp(Frozen):
    """A file as it was left; size in bytes and time of change tell, without reading it, that nobody touched it."""

    sha256: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """The stamp of a file as it is now; reads all of it."""
        state = path.stat()
        return cls(sha256=file_digest(path), size=state.st_size, mtime_ns=state.st_mtime_ns)

    def untouched(self, path: Path) -> bool:
        """Whether ``path`` still is the file that was stamped, as far as its size and time of change tell."""
        try:
            state = path.stat()
        except OSError:
            return False
        return (state.st_size, state.st_mtime_ns) == (self.size, self.mtime_ns)

    def anew(self, path: Path) -> Self | None:
        """The stamp of ``path`` if it still is that file; it is read only if its size or time say otherwise.

        A copy of a folder has new times, and the same bytes.
        """
        if self.untouched(path):
            return self
        if not path.is_file() or path.stat().st_size != self.size:
            return None
        stamp = self.of(path)
        return stamp if stamp.sha256 == self.sha256 else None
