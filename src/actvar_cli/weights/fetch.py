"""Files of the Hub, through its own client into the user's own cache, each held against its known digest.

``HF_HOME``, ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` work as with any other program: the client reads them
when it is imported, so it is imported here no earlier than needed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from actvar_cli.errors import ActvarError, InputError
from actvar_cli.progress import Progress, Task
from actvar_cli.weights.files import file_digest, new_file
from actvar_cli.weights.hub_errors import explain
from actvar_cli.weights.zoo import ASSETS, KNOWN, REVISION, HubFile, entry_of

DEFAULT_FILE = "model.safetensors"
_HUB_NAME = re.compile(r"hf://([^/@]+)/([^/@]+)(?:@([^/]+))?(?:/(.+))?")


@dataclass(frozen=True)
class Listing:
    """One line of `actvar ls`: ``size`` in bytes, without the tokenizer; ``path`` if the file is on this machine.

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


def _hub() -> Any:
    """The Hub's client, quiet: what it has to say is said by this program."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub.constants

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return huggingface_hub


def list_models() -> list[Listing]:
    """All known models and what of them is on this machine; asks no network."""
    found = []
    for entry in KNOWN.values():
        file = entry.transformer
        path = _asset(file) if isinstance(file, str) else _cached(file)
        source = file if isinstance(file, HubFile) else None
        size = source.size if source else (path.stat().st_size if path else 0)
        found.append(Listing(entry.name, entry.what, size, entry.fid, path, source))
    return found


def fetch(name: str, *, force: bool = False, progress: Progress | None = None) -> Path:
    """Bring a known model (or ``hf://owner/repo[@revision][/file]``) to this machine and return its file.

    The tokenizer of a known model comes with it. ``force`` fetches again what is there. Raises InputError for an
    unknown name, ActvarError where network, server or disk fail or a digest is wrong.
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
    """One file that a fetch needs: ``size`` in bytes (0: not known without asking); ``path`` if it is here already."""

    file: HubFile
    path: Path | None


@dataclass(frozen=True)
class Plan:
    """What `fetch` would do: its files, and the bytes that are free where they would go."""

    files: tuple[Planned, ...]
    free: int


def plan(name: str) -> Plan:
    """What fetching ``name`` would bring to this machine; asks no network. Raises InputError for an unknown name."""
    if name.startswith("hf://"):
        files: tuple[HubFile | str, ...] = (parse_hub_name(name),)
    else:
        entry = entry_of(name)
        files = (entry.transformer, entry.tokenizer)
    return Plan(tuple(Planned(file, _cached(file)) for file in files if isinstance(file, HubFile)), _free_bytes())


def _free_bytes() -> int:
    """What is free on the disk of the Hub's cache, which need not exist yet."""
    place = Path(_hub().constants.HF_HUB_CACHE).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


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
    return HubFile(f"{owner}/{repo}", file or DEFAULT_FILE, 0, revision=unquote(revision or REVISION))


def hub_file(file: HubFile, *, force: bool = False, progress: Progress | None = None) -> Path:
    """The file on this machine, fetched if it is not there or its digest is not the known one."""
    if file.sha256 and not force:
        # A digest settles which file it is: the Hub need not be asked, and everything works without a network.
        cached = _cached(file)
        if cached and _digest_is_right(cached, file):
            return cached
    path = _download(file, force, progress or Progress())
    if file.sha256 and not _digest_is_right(path, file):
        _refuse(path, file)
    return path


def _cached(file: HubFile) -> Path | None:
    found = _hub().try_to_load_from_cache(file.repo, file.file, revision=file.revision)
    return Path(found) if isinstance(found, str) else None


def _download(file: HubFile, force: bool, progress: Progress) -> Path:
    hub, free = _hub(), _free_bytes()
    if file.size > free and _cached(file) is None and not hub.constants.HF_HUB_OFFLINE:
        raise ActvarError(
            f"the disk is too full: {file.file} takes {file.size / 1e9:.2f} GB, {free / 1e9:.2f} GB are free in "
            f"{hub.constants.HF_HUB_CACHE}: make room, or set HF_HOME to another disk"
        )
    try:
        with progress.task(f"fetching {file.file}", file.size) as task:
            path = hub.hf_hub_download(
                file.repo, file.file, revision=file.revision, force_download=force, tqdm_class=_bar(task)
            )
    # The client lets through the errors of several HTTP libraries and of the disk; all become one line.
    except Exception as error:
        known = any(file in (entry.transformer, entry.tokenizer) for entry in KNOWN.values())
        raise explain(error, file, user_named_it=not known) from error
    return Path(path)


def _bar(task: Task) -> type[Any]:
    """What the client takes for a tqdm class, telling ``task`` the bytes."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]
            task.advance(int(kwargs.get("initial") or 0))

        def update(self, n: float | None = 1) -> bool | None:
            task.advance(int(n or 0))
            return None

    return Bar


def _digest_is_right(path: Path, file: HubFile) -> bool:
    """Whether the file's sha256 is the known one; a file once checked and not touched since is not read again."""
    from huggingface_hub.constants import HF_HOME

    note = Path(HF_HOME) / "actvar" / f"{file.sha256}.json"
    state = path.stat()
    seen = {"file": str(path.resolve()), "size": state.st_size, "mtime_ns": state.st_mtime_ns}
    try:
        if json.loads(note.read_text()) == seen:
            return True
    except (OSError, ValueError):
        pass
    if file_digest(path) != file.sha256:
        return False
    try:
        with new_file(note, force=True) as temporary:
            temporary.write_text(json.dumps(seen))
    except ActvarError:
        pass  # A cache that cannot be written to costs time only.
    return True


def _refuse(path: Path, file: HubFile) -> None:
    digest = file_digest(path)
    if digest.startswith(file.superseded):
        raise ActvarError(
            f"{path} is an old {file.file} (sha256 {digest[:8]}…) that its authors replaced in April 2024: "
            "fetch it again with a network and --force"
        )
    # Blob and link: the client would take either for the whole file.
    blob = path.resolve()
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)
    raise ActvarError(
        f"{file.repo}/{file.file} arrived with a wrong sha256 ({digest[:12]}…, expected {file.sha256[:12]}…) "
        "and was removed: fetch it again"
    )
