"""What a run remembers: the outcome of every step, under a key that changes with whatever the outcome depends on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from actvar_cli import __version__
from actvar_cli.errors import ActvarError, InputError
from actvar_cli.model.config import Frozen
from actvar_cli.weights.files import new_file
from actvar_cli.weights.stamp import Stamp

STEPS, RECORD, RECIPE = "steps", "run.json", "recipe.yaml"

MARK = ".actvar"
"""The file in `STEPS` that tells the folder of a run from one that has a folder of that name."""

DEPENDS = {
    "convert": ("model", "convert"),
    "distill": ("model", "convert", "distill"),
    "profile": ("model", "profile"),
    "evaluate": ("model", "evaluate"),
    "sample": ("model", "evaluate"),
    "export": ("model", "weights"),
    "report": ("model", "evaluate", "profile"),
}
"""The packages whose code decides what a step makes."""


class Outcome(Frozen):
    """What a step left: its ``result`` as JSON, its files by name, and the key it was made under."""

    key: str
    verb: str
    seconds: float
    inputs: dict[str, str]
    result: dict[str, Any]
    outputs: dict[str, Stamp]


@cache
def code_digest(verb: str) -> str:
    """sha256 of the version and of the source files that a step depends on."""
    digest = hashlib.sha256(__version__.encode())
    package = Path(str(files("actvar_cli")))
    for folder in (*DEPENDS[verb], "recipe"):
        for path in sorted((package / folder).rglob("*.py")):
            digest.update(path.relative_to(package).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def digest_json(value: object) -> str:
    """sha256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def key_of(verb: str, settings: Mapping[str, Any], inputs: Mapping[str, str], device: str) -> str:
    """The key of a step's outcome; a step's name and its gates are no part of it, they change nothing in it."""
    ignored = ("name", "max_distance_ratio", "max_cost", "model", "student", "teacher", "against")
    kept = {k: v for k, v in settings.items() if k not in ignored}
    return digest_json([verb, kept, dict(inputs), device, code_digest(verb)])


class RecordedStep(BaseModel):
    """What `run.json` says of a step, as far as anybody asks."""

    step: str
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    result: dict[str, Any] = {}


class RunRecord(BaseModel):
    """What `run.json` says of a run, as far as anybody asks; ``actvar`` is the version that wrote it."""

    actvar: str
    finished: bool = True
    files: tuple[str, ...] = ()
    steps: tuple[RecordedStep, ...] = ()


def read_record(folder: Path) -> RunRecord | None:
    """The record of the run that ``folder`` is of; ``None`` where there is none, or another program's."""
    try:
        return RunRecord.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None


class RunFolder:
    """A run's folder: the results a user looks for at its top, what each step left under ``steps/``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self) -> None:
        """Raise InputError where the folder holds something that is no run."""
        if not os.path.lexists(self.path):
            return
        if not self.path.is_dir():
            raise InputError(f"{self.path} exists and is not a folder")
        steps = self.path / STEPS
        # An export has a record too, but no steps.
        made_by_run = (steps / MARK).is_file() or (steps.is_dir() and read_record(self.path) is not None)
        if any(self.path.iterdir()) and not made_by_run:
            raise InputError(f"{self.path} exists and is not the folder of a run: choose another one with -o")

    @contextmanager
    def begin(self) -> Iterator[None]:
        """Make the folder, and hold it against a second run.

        Raises ActvarError where another run holds it already.
        """
        try:
            (self.path / STEPS).mkdir(parents=True, exist_ok=True)
            (self.path / STEPS / MARK).touch()
            # Taken outside the block: a time-out of another lock, while the run works, is not this one's.
            held = FileLock(self.path / STEPS / ".lock").acquire(timeout=0)
        except Timeout:
            raise ActvarError(
                f"another run is at work in {self.path}: wait for it, or choose another folder with -o"
            ) from None
        except OSError as error:
            raise InputError(f"cannot make the folder {self.path}: {error.strerror}") from error
        with held:
            yield

    def published(self) -> set[str]:
        """Files that runs have shown at the top of the folder, by its record."""
        record = read_record(self.path)
        # A record that came with a folder from elsewhere names no file outside it.
        return {name for name in record.files if Path(name).name == name} if record else set()

    def record(self, recipe: str, record: Mapping[str, Any]) -> None:
        """Put the recipe as the user wrote it, and the record of what it came to, at the top of the folder."""
        for name, text in ((RECIPE, recipe), (RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")):
            with new_file(self.path / name, force=True) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def of_step(self, name: str) -> Path:
        """Where a step's files are."""
        return self.path / STEPS / name

    def clear(self, name: str, keep: Iterable[str] = ()) -> Path:
        """Make the empty folder of a step that is about to run, and forget its old outcome; ``keep`` stays."""
        self._state(name).unlink(missing_ok=True)
        folder = self.of_step(name)
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path.name not in keep:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return folder

    def outcome(self, name: str) -> Outcome | None:
        """What the step left, if all of it is still as it was left."""
        try:
            outcome = Outcome.model_validate_json(self._state(name).read_bytes())
        except (OSError, ValidationError):
            return None
        folder, known = self.of_step(name), outcome.outputs
        found = {file: stamp.anew(folder / file) for file, stamp in known.items()}
        stamps = {file: stamp for file, stamp in found.items() if stamp}
        if len(stamps) < len(known):
            return None
        if stamps != known:
            # Copied: its files need not be read again the next time.
            outcome = outcome.model_copy(update={"outputs": stamps})
            with suppress(ActvarError):
                self._remember(name, outcome)
        return outcome

    def finish(
        self, name: str, *, key: str, verb: str, seconds: float, inputs: Mapping[str, str], result: dict[str, Any]
    ) -> Outcome:
        """Remember a step's outcome; its files are all those in its folder."""
        outputs = {path.name: Stamp.of(path) for path in sorted(self.of_step(name).iterdir())}
        outcome = Outcome(key=key, verb=verb, seconds=seconds, inputs=dict(inputs), result=result, outputs=outputs)
        self._remember(name, outcome)
        # As it is read again: JSON has no infinity.
        return Outcome.model_validate_json(outcome.model_dump_json())

    def publish(self, name: str, file: str, ours: Collection[str]) -> bool:
        """Let a step's file appear at the top of the folder too, without a second copy where the disk can do that.

        False where a file of that name is there that is none of ``ours``: it stays as it is.
        """
        source, target = self.of_step(name) / file, self.path / file
        if target.exists() and target.samefile(source):
            return True
        if os.path.lexists(target) and file not in ours:
            return False
        with new_file(target, force=True) as temporary:
            try:
                os.link(source, temporary)
            except OSError:
                shutil.copy2(source, temporary)
        return True

    def forget(self, names: Iterable[str]) -> None:
        """Remove files at the top of the folder."""
        for name in names:
            if (self.path / name).is_file():
                (self.path / name).unlink()

    def forget_outcome(self, name: str, unfinished: str) -> None:
        """Let a step be as if it had not been done; what it left stays until it is, but not what is ``unfinished``."""
        self._state(name).unlink(missing_ok=True)
        for path in self.of_step(name).glob(unfinished):
            path.unlink()

    def _remember(self, name: str, outcome: Outcome) -> None:
        with new_file(self._state(name), force=True) as temporary:
            temporary.write_text(outcome.model_dump_json(), encoding="utf-8")

    def _state(self, name: str) -> Path:
        return self.path / STEPS / f"{name}.json"


def read_texts(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The texts among ``names`` that ``folder`` holds."""
    try:
        return {name: (folder / name).read_text(encoding="utf-8") for name in names if (folder / name).is_file()}
    except (OSError, UnicodeDecodeError) as error:
        raise ActvarError(f"cannot read {folder}: {error}") from error
