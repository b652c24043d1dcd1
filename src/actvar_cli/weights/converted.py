"""Files of the Hub that are pickles, converted once to safetensors beside a note of where each came from.

``$HF_HOME/actvar/owner--repo/var_d16-4f6151aa.safetensors`` holds every tensor of the original under its published key,
bit for bit, and nothing of actvar; the ``.json`` beside it is a `Note`. From then on the original is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from pydantic import ValidationError

from actvar_cli import __version__
from actvar_cli.errors import ActvarError
from actvar_cli.model.config import Frozen
from actvar_cli.progress import Progress
from actvar_cli.weights.download import Remote, hub, refuse_full_cache
from actvar_cli.weights.files import file_digest, new_file
from actvar_cli.weights.stamp import Stamp
from actvar_cli.weights.zoo import HubFile

if TYPE_CHECKING:
    from torch import Tensor


class Note(Frozen):
    """Where a converted file came from: ``sha256`` and ``size`` (bytes) are the original's, ``converted`` is its own.

    ``revisions`` are the names and the commits that stood for the original when they were last asked for.
    """

    repo: str
    file: str
    revisions: tuple[str, ...]
    etag: str
    sha256: str
    size: int
    date: str
    actvar: str
    converted: Stamp


def home() -> Path:
    """Where converted files are."""
    return Path(hub().constants.HF_HOME) / "actvar"


def folder_of(file: HubFile) -> Path:
    """Where the converted files of a repository are."""
    return home() / file.repo.replace("/", "--")


def find(file: HubFile, remote: Remote | None = None) -> Path | None:
    """The converted file, if it is here and whole; asks no network.

    It is known by what the Hub says of the original now, else by its sha256, else by the revision.
    """
    for path, note in _notes(file):
        if remote:
            same = note.etag == remote.etag
        else:
            same = note.sha256 == file.sha256 if file.sha256 else file.revision in note.revisions
        if same and _whole(path, note):
            if remote:
                _remember(file, remote, path, note)
            return path
    return None


def published_digest(path: Path) -> str:
    """sha256 of a file as its publisher has it: the original's where ``path`` is a converted one, else its own."""
    if path.resolve().parent.parent == home().resolve():
        note = _read(path.with_suffix(".json"))
        if note and _whole(path, note):
            return note.sha256
    return file_digest(path)


@contextmanager
def alone(file: HubFile, progress: Progress) -> Iterator[None]:
    """Held against other processes that fetch or convert the same file; waits for them."""
    locks = home() / ".locks"
    lock = FileLock(locks / f"{folder_of(file).name}--{_stem(file)}.lock")
    try:
        locks.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress.say(f"another process is fetching {file.file}: waiting for it")
            lock.acquire()
    except (OSError, NotImplementedError):
        pass  # Where nothing can be written, or locked, nothing is converted: the cache's own locks remain.
    try:
        yield
    finally:
        lock.release()


def convert(original: Path, file: HubFile, remote: Remote | None, digest: str, progress: Progress) -> Path:
    """Convert ``original``, whose sha256 is ``digest``, and return the new file; whole or not at all.

    Where it cannot be written ``original`` is returned, with a word to ``progress``. Raises InputError where it holds
    no model.
    """
    from actvar_cli.weights.artefact import write_tensors
    from actvar_cli.weights.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(original)
    path = folder_of(file) / f"{_stem(file)}-{digest[:8]}.safetensors"
    etag = remote.etag if remote else original.resolve().name
    revisions = {file.revision, *([remote.commit] if remote else [])}
    size = original.stat().st_size
    try:
        _sweep(path)
        refuse_full_cache(file, {path.parent: size})
        with progress.task(f"converting {file.file}", 2 * size) as task, new_file(path, force=True) as temporary:
            # Tensors are mapped from the original and written one by one: they go from disk to disk.
            write_tensors(temporary, _flat(checkpoint.transformer, checkpoint.tokenizer), {"format": "pt"})
            task.advance(size)
            own = Stamp.of(temporary)
            task.advance(size, "safetensors")
        note = Note(
            repo=file.repo,
            file=file.file,
            revisions=tuple(sorted(revisions)),
            etag=etag,
            sha256=digest,
            size=size,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            actvar=__version__,
            converted=own,
        )
        _write(path, note)
        _claim(file, revisions, path)
    except ActvarError as error:
        progress.say(f"{file.file} is used as it is, not converted to safetensors: {error}")
        return original
    return path


def _flat(transformer: Mapping[str, Tensor] | None, tokenizer: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Both parts of a checkpoint in one: under their published keys, told apart by a prefix only if there are two."""
    if transformer and tokenizer:
        return {
            **{f"var.{key}": tensor for key, tensor in transformer.items()},
            **{f"vae.{key}": tensor for key, tensor in tokenizer.items()},
        }
    return dict(transformer or tokenizer or {})


def _stem(file: HubFile) -> str:
    return file.file.rpartition(".")[0].replace("/", "--") or file.file


def _sweep(path: Path) -> None:
    """Remove what a killed conversion left; nobody else is at work, see `alone`."""
    for old in path.parent.glob(f".{path.name}.*.tmp"):
        old.unlink(missing_ok=True)


def _notes(file: HubFile) -> Iterator[tuple[Path, Note]]:
    folder = folder_of(file)
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        note = _read(path)
        if note and (note.repo, note.file) == (file.repo, file.file):
            yield path.with_suffix(".safetensors"), note


def _read(path: Path) -> Note | None:
    try:
        return Note.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _write(path: Path, note: Note) -> None:
    with new_file(path.with_suffix(".json"), force=True) as temporary:
        temporary.write_text(note.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _update(path: Path, note: Note, **changes: object) -> None:
    # Where a note cannot be written the next process finds out the same again.
    with suppress(ActvarError):
        _write(path, note.model_copy(update=changes))


def _whole(path: Path, note: Note) -> bool:
    """Whether the file is the one that the note was written for; it is read only if its size or time say otherwise."""
    own = note.converted.anew(path)
    if own and own != note.converted:
        _update(path, note, converted=own)
    return own is not None


def _remember(file: HubFile, remote: Remote, path: Path, note: Note) -> None:
    """Note that a revision stands for this original now, so that it is found without a network."""
    revisions = {file.revision, remote.commit}
    if not revisions <= set(note.revisions):
        _update(path, note, revisions=tuple(sorted({*note.revisions, *revisions})))
        _claim(file, revisions, path)


def _claim(file: HubFile, revisions: set[str], by: Path) -> None:
    """Take ``revisions`` from the notes of other originals: a branch stands for one only."""
    for path, note in _notes(file):
        if path != by and not revisions.isdisjoint(note.revisions):
            _update(path, note, revisions=tuple(sorted(set(note.revisions) - revisions)))
