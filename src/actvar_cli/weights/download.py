"""One file of the Hub, by its own client into the user's own cache, going on from where an earlier try stopped.

The client downloads under a new name each time and deletes what arrived when it fails, so that a second process begins
anew; what comes over Xet is not continued either. So the bytes are fetched here, over plain HTTP, by the client's
`http_get`, which continues. They lie in the folder where the client keeps a repository's content, each under its ETag
(a documented layout), and get that name only when they are whole and their sha256 is right. The client then finds
the content there and links it into its snapshots and refs, so that other programs find it as if the client had
fetched all of it.

``HF_HOME``, ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` work as with any other program: the client reads them
when it is imported, so it is imported here no earlier than needed.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from actvar_cli.errors import ActvarError, InputError
from actvar_cli.progress import Progress, Task
from actvar_cli.weights.files import file_digest, refuse_full_disk
from actvar_cli.weights.hub_errors import explain, status_of
from actvar_cli.weights.zoo import KNOWN, HubFile, what_is_old

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Remote:
    """What the Hub says of a file before any of it is fetched; ``size`` in bytes, ``None`` where it does not say."""

    etag: str
    commit: str
    size: int | None

    @property
    def sha256(self) -> str:
        """The sha256 of the content, which is the ETag of every large file; empty for a small one."""
        return self.etag if _SHA256.fullmatch(self.etag) else ""


def hub() -> Any:
    """The Hub's client, quiet: what it has to say is said by this program."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub.constants
    import huggingface_hub.errors
    import huggingface_hub.utils

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return huggingface_hub


def check_repo(repo: str) -> None:
    """Raise InputError where no repository of the Hub can be called so."""
    try:
        hub().utils.validate_repo_id(repo)
    except ValueError as error:
        raise InputError(f"{repo!r} is no repository name: {str(error).splitlines()[0].rstrip('.')}") from error


def cached(file: HubFile) -> Path | None:
    """The file in the client's cache, whoever fetched it; asks no network."""
    found = hub().try_to_load_from_cache(file.repo, file.file, revision=file.revision)
    if isinstance(found, str):
        return Path(found)
    # The same content under another revision: it is known by its sha256.
    blob = _blob(file, file.sha256) if file.sha256 else None
    return blob if blob and blob.is_file() else None


def arrived(file: HubFile) -> int:
    """Bytes of a file that an earlier try left, to go on from; 0 where its digest is not known without asking."""
    partial = _partial(file, file.sha256)
    return partial.stat().st_size if file.sha256 and partial.is_file() else 0


def ask(file: HubFile, *, needed: bool) -> Remote | None:
    """What the Hub says of a file; ``None`` where it cannot be reached and ``needed`` is off.

    Raises ActvarError, or InputError for a name that the user made up.
    """
    client = hub()
    try:
        url = client.hf_hub_url(file.repo, file.file, revision=file.revision)
        found = client.get_hf_file_metadata(url, retry_on_errors=needed)
    except Exception as error:
        gone = isinstance(error, client.errors.RevisionNotFoundError | client.errors.EntryNotFoundError)
        if needed or gone:
            raise _explained(error, file) from error
        return None
    if not found.etag or not found.commit_hash:
        raise ActvarError(f"{client.constants.ENDPOINT} does not answer as a Hub does: check HF_ENDPOINT, or the proxy")
    return Remote(found.etag, found.commit_hash, found.size)


def refuse_other(file: HubFile, remote: Remote) -> None:
    """Raise ActvarError where the Hub has another file than the known one, before any of it is fetched."""
    if file.sha256 and remote.sha256 and remote.sha256 != file.sha256:
        what = what_is_old(remote.sha256) or (
            f"not the published file (its sha256 is {remote.sha256[:12]}…, expected {file.sha256[:12]}…)"
        )
        raise ActvarError(f"{hub().constants.ENDPOINT} has {what} for {file.repo}/{file.file}: nothing was fetched")


def download(
    file: HubFile, remote: Remote, *, force: bool, also: Mapping[Path, int], progress: Progress
) -> tuple[Path, str]:
    """The file in the client's cache, fetched if it is not there or ``force`` is on, and its sha256 if it was taken.

    ``also``: bytes that will be needed besides, by the folder they go to. Raises ActvarError where network, server
    or disk fail or the digest is wrong; what arrived of a large file is kept and the next call goes on from there.
    """
    blob, digest, client = _blob(file, remote.etag), "", hub()

    def linked() -> Path | None:
        found = client.try_to_load_from_cache(file.repo, file.file, revision=remote.commit)
        return Path(found) if isinstance(found, str) else None

    try:
        if force or not (blob.is_file() or linked()):
            digest = _bring(file, remote, blob, also, progress)
            if (old := linked()) and not blob.samefile(old):
                old.unlink()
        client.hf_hub_download(file.repo, file.file, revision=file.revision)
        path = linked() or blob
        if digest and not blob.samefile(path):
            blob.unlink()  # No links on this disk: the client has copied it.
    # The client lets through the errors of several HTTP libraries and of the disk; all become one line.
    except Exception as error:
        raise _explained(error, file) from error
    return path, digest


def _bring(file: HubFile, remote: Remote, blob: Path, also: Mapping[Path, int], progress: Progress) -> str:
    partial = _partial(file, remote.etag)
    partial.parent.mkdir(parents=True, exist_ok=True)
    _forget(file, keep=partial)
    # Without a sha256 nothing would tell whether two halves belong together.
    if not remote.sha256 or not remote.size or _size(partial) > remote.size:
        partial.unlink(missing_ok=True)
    refuse_full_cache(file, {partial.parent: (remote.size or 0) - _size(partial), **also})
    try:
        with progress.task(f"fetching {file.file}", remote.size or 0) as task:
            _continue(file, remote, partial, _bar(task))
    except Exception as error:
        if not remote.sha256:
            partial.unlink(missing_ok=True)
        raise _explained(error, file, kept=_size(partial), size=remote.size) from error
    with progress.task(f"checking {file.file}", _size(partial)) as task:
        digest = file_digest(partial, task)
    if remote.sha256 and digest != remote.sha256:
        partial.unlink()
        raise ActvarError(
            f"{file.repo}/{file.file} arrived with a wrong sha256 ({digest[:12]}…, expected {remote.sha256[:12]}…) "
            "and was removed: fetch it again"
        )
    os.replace(partial, blob)
    return digest


def _continue(file: HubFile, remote: Remote, partial: Path, bar: type[Any]) -> None:
    """Fetch what ``partial`` lacks."""
    from huggingface_hub.file_download import http_get

    # By the commit: what is asked for does not change between two tries, and the address never expires.
    url = hub().hf_hub_url(file.repo, file.file, revision=remote.commit)
    while True:
        had = _size(partial)
        try:
            with partial.open("ab") as stream:
                http_get(
                    url,
                    stream,
                    resume_size=had,
                    headers=hub().utils.build_hf_headers(),
                    expected_size=remote.size,
                    displayed_filename=file.file,
                    tqdm_class=bar,
                )
            return
        except OSError as error:
            # The server's file is not as long as it said: there is nothing to go on from.
            if error.errno is None and status_of(error) in (None, 416):
                partial.unlink()
            raise
        except Exception:
            # The client goes on after some errors of a connection, not after all; no progress is the end.
            if _size(partial) <= had:
                raise


def _bar(task: Task) -> type[Any]:
    """What the client takes for a tqdm class, telling ``task`` the bytes, each once over all tries."""
    from huggingface_hub.utils.tqdm import tqdm

    told = 0

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]
            self.at = 0
            self.update(int(kwargs.get("initial") or 0))

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal told
            self.at += int(n or 0)
            task.advance(self.at - told)
            told = self.at
            return None

    return Bar


def refuse_full_cache(file: HubFile, needs: Mapping[Path, int]) -> None:
    """Raise ActvarError where there is no room in the cache; ``needs`` are the bytes that go into each folder."""
    refuse_full_disk(f"{file.file}, with what is made of it,", needs, "make room, or set HF_HOME to another disk")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _blob(file: HubFile, etag: str) -> Path:
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=file.repo, repo_type="model")
    return Path(hub().constants.HF_HUB_CACHE) / folder / "blobs" / etag


def _partial(file: HubFile, etag: str) -> Path:
    # The ETag in the name: content that changed meanwhile is not continued.
    return _blob(file, f"{etag}.{_tail(file)}")


def _tail(file: HubFile) -> str:
    return f"{quote(file.file, safe='')[-150:]}.incomplete"


def _forget(file: HubFile, *, keep: Path) -> None:
    """Remove what is left of earlier contents of the file."""
    for path in keep.parent.iterdir():
        if path != keep and path.name.partition(".")[2] == _tail(file):
            path.unlink(missing_ok=True)


def _explained(error: Exception, file: HubFile, *, kept: int = 0, size: int | None = None) -> ActvarError:
    if isinstance(error, ActvarError):
        return error
    known = any(file in (entry.transformer, entry.tokenizer) for entry in KNOWN.values())
    found = explain(error, file, user_named_it=not known)
    if not kept:
        return found
    arrived = f"{kept / 1e6:.1f} of {(size or 0) / 1e6:.1f} MB arrived and are kept"
    return ActvarError(f"{found} ({arrived}: the next fetch goes on from there)")
