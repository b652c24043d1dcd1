"""Files and folders that appear whole or not at all, and their digests."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from actvar_cli.errors import ActvarError, InputError
from actvar_cli.progress import Task


def file_digest(path: str | Path, task: Task | None = None) -> str:
    """sha256 of a file's bytes, in hexadecimal; ``task`` hears of every byte read."""
    with _Heard(path, task or Task()) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_safetensors(path: str | Path) -> bool:
    """Whether a file begins as safetensors do: the length of a header in 8 bytes, then the header's brace."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


class _Heard(FileIO):
    """A file that tells ``task`` what is read of it."""

    def __init__(self, path: str | Path, task: Task) -> None:
        super().__init__(path)
        self.task = task

    def readinto(self, buffer: Any, /) -> int:
        """The usual method, heard of."""
        count = super().readinto(buffer) or 0
        self.task.advance(count)
        return count


def refuse_existing(path: Path, force: bool) -> None:
    """Raise InputError where a file cannot be written to ``path`` because something is there."""
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file")
    if os.path.lexists(path) and not force:
        raise InputError(f"{path} exists: choose another name, or replace it with --force")


def _writable_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path.parent}: {error.strerror}") from error
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write in {path.parent}: permission denied")


def _temporary(path: Path) -> Path:
    # In the same folder, so that the rename at the end stays on one file system and is atomic.
    return path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"


@contextmanager
def new_file(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary path to write to, renamed to ``path`` when the block ends well and removed when it does not.

    Raises InputError where ``path`` exists and ``force`` is off, before anything is written; ActvarError where the
    disk fails.
    """
    path = Path(path)
    refuse_existing(path, force)
    _writable_parent(path)
    temporary = _temporary(path)
    try:
        yield temporary
        refuse_existing(path, force)
        os.replace(temporary, path)
    except OSError as error:
        raise ActvarError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path, *, replaceable: Collection[str], force: bool = False) -> Iterator[Path]:
    """A temporary folder to fill, renamed to ``path`` when the block ends well and removed when it does not.

    ``force`` replaces an existing folder only if it holds nothing but the file names ``replaceable``, so that nobody's
    other files are lost. Raises InputError otherwise, before anything is written.
    """
    # Where it is a link, what it leads to is replaced.
    path = Path(path).resolve()
    refuse_folder(path, replaceable, force)
    _writable_parent(path)
    temporary, old = _temporary(path), _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        # It may have come to be there meanwhile.
        refuse_folder(path, replaceable, force)
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(temporary, path)
        except BaseException:
            if old.exists():
                os.replace(old, path)
            raise
    except OSError as error:
        raise ActvarError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def existing(place: Path) -> Path:
    """The folder that ``place`` will be made in, or itself."""
    place = place.absolute()
    while not place.exists():
        place = place.parent
    return place


def refuse_full_disk(what: str, needs: Mapping[Path, int], remedy: str) -> None:
    """Raise ActvarError where a disk has less room than ``what`` needs in the folders on it; ``needs`` in bytes."""
    disks: dict[int, tuple[Path, int]] = {}
    for place, size in needs.items():
        there = existing(place)
        disk = there.stat().st_dev
        disks[disk] = (disks.get(disk, (there,))[0], disks.get(disk, (there, 0))[1] + size)
    for place, size in disks.values():
        free = shutil.disk_usage(place).free
        if size > free:
            raise ActvarError(
                f"the disk is too full: {what} takes {size / 1e9:.2f} GB, "
                f"{free / 1e9:.2f} GB are free in {place}: {remedy}"
            )


def refuse_folder(path: Path, replaceable: Collection[str], force: bool) -> None:
    """Raise InputError where `new_folder` would not replace what is at ``path``."""
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise InputError(f"{path} exists and is not a folder")
    # The new one is made beside it and takes its place, which is not to be had of these.
    mounted = os.path.ismount(path.resolve())
    if mounted or path.resolve() == Path.cwd():
        what = "is a disk of its own" if mounted else "is where you are"
        raise InputError(f"{path} {what} and cannot be replaced: name a folder inside it")
    names = sorted(p.name for p in path.iterdir())
    foreign = [name for name in names if name not in replaceable]
    if names and not force:
        raise InputError(f"{path} exists and is not empty: choose another name, or replace it with --force")
    if foreign:
        raise InputError(
            f"{path} holds {foreign[0]!r}, which is none of the files to be replaced: --force would delete it"
        )
