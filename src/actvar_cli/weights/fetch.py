"""Models by their names, brought to this machine: from the Hub, held against their known digests, as safetensors."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from actvar_cli.errors import ActvarError, InputError
from actvar_cli.progress import Progress
from actvar_cli.weights.converted import alone, convert, find, folder_of
from actvar_cli.weights.download import Remote, arrived, ask, cached, check_repo, download, hub, refuse_other
from actvar_cli.weights.files import existing, file_digest, is_safetensors
from actvar_cli.weights.shards import INDEX_SUFFIX
from actvar_cli.weights.zoo import ASSETS, KNOWN, REVISION, HubFile, entry_of, what_is_old

DEFAULT_FILE = "model.safetensors"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_NAME = re.compile(r"hf://([^/@]+)/([^/@]+)(?:@([^/]+))?(?:/(.+))?")


@dataclass(frozen=True)
class Listing:
    """One line of `actvar ls`: ``size`` in bytes, as published, without the tokenizer.

    ``path`` if the file is on this machine: the converted one, or the original where that has not been done yet.
    ``source`` is where the file is fetched from; ``None`` for a model that ships with the package.
    """

    name: str
    what: str
    size: int
    fid: float | None
    path: Path | None
    source: HubFile | None

    @property
    def cached(self) -> bool:
        """Whether the model can be used without a network."""
        return self.path is not None

    @property
    def converted(self) -> bool:
        """Whether what is here is safetensors."""
        return self.path is not None and is_safetensors(self.path)


def list_models() -> list[Listing]:
    """All known models and what of them is on this machine; asks no network."""
    found = []
    for entry in KNOWN.values():
        file = entry.transformer
        path = here(file)
        source = file if isinstance(file, HubFile) else None
        size = source.size if source else (path.stat().st_size if path else 0)
        found.append(Listing(entry.name, entry.what, size, entry.fid, path, source))
    return found


def fetch(name: str, *, force: bool = False, progress: Progress | None = None) -> Path:
    """Bring a known model (or ``hf://owner/repo[@revision][/file]``) to this machine and return its safetensors file.

    The tokenizer of a known model comes with it. ``force`` fetches and converts again what is there. Raises InputError
    for an unknown name, ActvarError where network, server or disk fail or a digest is wrong.
    """
    if name.startswith("hf://"):
        from actvar_cli.weights.hub_model import hub_model

        return hub_model(name, force=force, progress=progress)[1]
    entry = entry_of(name)
    path = _get(entry.transformer, force=force, progress=progress)
    _get(entry.tokenizer, force=force, progress=progress)
    return path


@dataclass(frozen=True)
class Planned:
    """One file that a fetch needs; ``path`` if it is here already; ``arrived``: bytes an earlier try left.

    Bytes ``to_fetch`` and ``to_convert`` (what the converted file takes) are ``None`` where only the Hub knows them.
    """

    file: HubFile
    path: Path | None
    arrived: int
    to_fetch: int | None
    to_convert: int | None


@dataclass(frozen=True)
class Plan:
    """What `fetch` would do: its files, and the bytes that are free where they would go."""

    files: tuple[Planned, ...]
    free: int

    @property
    def to_fetch(self) -> int | None:
        """Bytes to come over the network."""
        return _sum(file.to_fetch for file in self.files)

    @property
    def to_convert(self) -> int | None:
        """Bytes that the converted files will take besides."""
        return _sum(file.to_convert for file in self.files)


def _sum(sizes: Iterable[int | None]) -> int | None:
    known = list(sizes)
    return None if None in known else sum(size or 0 for size in known)


def plan(name: str, *, force: bool = False) -> Plan:
    """What fetching ``name`` would bring to this machine; asks no network. Raises InputError for an unknown name."""
    if name.startswith("hf://"):
        files: tuple[HubFile | str, ...] = (parse_hub_name(name),)
    else:
        entry = entry_of(name)
        files = (entry.transformer, entry.tokenizer)
    free = shutil.disk_usage(existing(Path(hub().constants.HF_HUB_CACHE))).free
    return Plan(tuple(_planned(file, force) for file in files if isinstance(file, HubFile)), free)


def _planned(file: HubFile, force: bool) -> Planned:
    path, part = here(file), arrived(file)
    size = file.size or None
    done = path is not None and not force
    return Planned(
        file,
        path,
        part,
        to_fetch=0 if done else size and size - part,
        to_convert=size if _will_be_converted(file) and not (done and path and is_safetensors(path)) else 0,
    )


def _will_be_converted(file: HubFile) -> bool:
    # An index of shards is no checkpoint itself, its shards are safetensors.
    return not file.file.endswith((".safetensors", INDEX_SUFFIX))


def _is_to_convert(path: Path, file: HubFile) -> bool:
    return not is_safetensors(path) and not file.file.endswith(INDEX_SUFFIX)


def here(file: HubFile | str) -> Path | None:
    """The file as it is on this machine, converted or original; asks no network."""
    return _asset(file) if isinstance(file, str) else find(file) or cached(file)


def fetch_tokenizer(name: str, *, progress: Progress | None = None) -> Path:
    """The tokenizer of a known model."""
    return _get(entry_of(name).tokenizer, force=False, progress=progress)


def _get(file: HubFile | str, *, force: bool, progress: Progress | None) -> Path:
    if isinstance(file, HubFile):
        return hub_file(file, force=force, progress=progress)
    path = _asset(file)
    if path is None:
        raise ActvarError(f"this installation of actvar is incomplete: {file} is missing from its assets")
    return path


def _asset(file: str) -> Path | None:
    path = ASSETS / file
    return path if path.is_file() else None


def parse_hub_name(name: str) -> HubFile:
    """``hf://owner/repo[@revision][/file]`` as a file; a slash inside a revision is written ``%2F``."""
    match = _HUB_NAME.fullmatch(name)
    if not match:
        raise InputError(f"{name!r} is no Hub name: write hf://owner/repo[@revision][/file]")
    owner, repo, revision, file = match.groups()
    check_repo(f"{owner}/{repo}")
    if ".." in (file or "").split("/"):
        raise InputError(f"{name!r} is no Hub name: its file leaves the repository")
    return HubFile(f"{owner}/{repo}", file or DEFAULT_FILE, 0, revision=unquote(revision or REVISION))


def hub_file(file: HubFile, *, force: bool = False, progress: Progress | None = None) -> Path:
    """The file on this machine as safetensors, fetched and converted if it is not there.

    Where the converted file cannot be written, the original in the Hub's cache.
    """
    progress = progress or Progress()
    if not force and (path := _settled(file)):
        return path
    with alone(file, progress):
        if not force and (path := _settled(file)):
            return path
        known, path = (None, None) if force else (find(file), cached(file))
        remote = None if path and _is_fixed(file) else ask(file, needed=not (path or known))
        if remote is None and known:
            return known
        digest = ""
        if remote:
            refuse_other(file, remote)
            if not force and (found := find(file, remote)):
                return found
            also = {folder_of(file): remote.size or 0} if _will_be_converted(file) else {}
            path, digest = download(file, remote, force=force, also=also, progress=progress)
        assert path is not None
        if not file.sha256 and not _is_to_convert(path, file):
            return path
        return _checked(path, file, remote, digest, progress)


def _checked(path: Path, file: HubFile, remote: Remote | None, digest: str, progress: Progress) -> Path:
    """``path`` as safetensors, once it is known to be the right file; ``digest`` is empty where nobody took it yet."""
    if not digest:
        with progress.task(f"checking {file.file}", path.stat().st_size) as task:
            digest = file_digest(path, task)
    if file.sha256 and digest != file.sha256:
        _refuse(path, file, digest)
    return convert(path, file, remote, digest, progress) if _is_to_convert(path, file) else path


def _refuse(path: Path, file: HubFile, digest: str) -> None:
    if what := what_is_old(digest):
        raise ActvarError(f"{path} is {what}: fetch it again with --force")
    # Blob and link: the client would take either for the whole file.
    blob = path.resolve()
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)
    raise ActvarError(
        f"{path} had a wrong sha256 ({digest[:12]}…, expected {file.sha256[:12]}…) and was removed: fetch it again"
    )


def _settled(file: HubFile) -> Path | None:
    """The file where it is here and a question to the Hub could change nothing."""
    if not _is_fixed(file):
        return None
    path = find(file)
    if path is None and not file.sha256 and (path := cached(file)) and _is_to_convert(path, file):
        return None
    return path


def _is_fixed(file: HubFile) -> bool:
    return bool(file.sha256 or _COMMIT.fullmatch(file.revision))
