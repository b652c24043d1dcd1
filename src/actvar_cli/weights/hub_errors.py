"""What went wrong between this machine and the Hub, in one line."""

from __future__ import annotations

import errno
import os

from actvar_cli.errors import ActvarError, InputError
from actvar_cli.weights.zoo import HubFile


def explain(error: Exception, file: HubFile, *, user_named_it: bool) -> ActvarError:
    """The error to raise for one of the Hub's client; a name that the user made up wrongly is an InputError."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    what = f"{file.repo}/{file.file}"
    wrong = InputError if user_named_it else ActvarError
    status = status_of(error)
    if isinstance(error, hub.GatedRepoError):
        return ActvarError(f"{file.repo} is gated: accept its terms at {constants.ENDPOINT}/{file.repo}, set HF_TOKEN")
    if isinstance(error, hub.RepositoryNotFoundError):
        return wrong(f"no repository {file.repo} on {constants.ENDPOINT} (a private one needs HF_TOKEN)")
    if isinstance(error, hub.RevisionNotFoundError):
        return wrong(f"repository {file.repo} has no revision {file.revision!r}")
    if isinstance(error, hub.EntryNotFoundError) and not isinstance(error, hub.LocalEntryNotFoundError):
        return wrong(f"repository {file.repo} has no file {file.file!r} at revision {file.revision!r}")
    if constants.HF_HUB_OFFLINE:
        return ActvarError(f"{what} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids fetching")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return ActvarError(f"the disk is full: {what} does not fit into {constants.HF_HUB_CACHE}: make room")
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
        return ActvarError(f"cannot write to the cache {constants.HF_HUB_CACHE}: {os.strerror(error.errno)}")
    if status is not None:
        return ActvarError(f"{constants.ENDPOINT} answered {status} for {what}: try again later")
    return ActvarError(f"cannot fetch {what} from {constants.ENDPOINT}: {_root_cause(error)}")


def explain_push(error: Exception, repo: str) -> ActvarError:
    """The error to raise for one that the Hub's client met while it wrote to ``repo``, or asked who may."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    status = status_of(error)
    if status == 401 and not isinstance(error, hub.RepositoryNotFoundError):
        return InputError(f"{constants.ENDPOINT} does not accept the token: set HF_TOKEN, or run `hf auth login`")
    if status in (401, 403, 404):
        return InputError(
            f"the token may not write to {repo}: make one that may at {constants.ENDPOINT}/settings/tokens"
        )
    if status in (409, 412):
        return ActvarError(f"{repo} was changed by somebody else meanwhile: nothing was pushed, push again")
    if status is not None:
        return ActvarError(f"{constants.ENDPOINT} answered {status} for {repo}: try again later")
    return ActvarError(f"cannot push to {repo} at {constants.ENDPOINT}: {_root_cause(error)}")


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status in an error or in what caused it."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return int(response.status_code)
        error = error.__cause__ or error.__context__
    return None


def _root_cause(error: BaseException) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return _first_line(error) or type(error).__name__


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
