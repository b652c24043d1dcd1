"""Whether an output can be written, found out before the work that makes it."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from actvar_cli.errors import InputError
from actvar_cli.weights.files import existing, refuse_existing, refuse_folder


def check_file(path: Path, *, force: bool) -> Path:
    """``path``, if a file can be written there; InputError otherwise."""
    refuse_existing(path, force)
    _check_place(path)
    return path


def check_folder(path: Path, *, replaceable: Collection[str], force: bool) -> Path:
    """``path``, if a folder can be written there; ``force`` allows for one that holds only ``replaceable`` names."""
    refuse_folder(path, replaceable, force)
    _check_place(path)
    return path


def _check_place(path: Path) -> None:
    place = existing(path.parent)
    if not place.is_dir():
        raise InputError(f"cannot write {path}: {place} is not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {path}: no permission to write in {place}")
