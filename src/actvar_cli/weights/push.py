"""An exported folder into a repository of the Hub: asked first, then one commit that changes all of it or nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actvar_cli.errors import InputError
from actvar_cli.progress import Progress
from actvar_cli.weights.download import check_repo
from actvar_cli.weights.download import hub as client
from actvar_cli.weights.hub_errors import explain_push
from actvar_cli.weights.shards import is_weights

WRITES = ("admin", "write", "contributor")
"""Roles in an organisation whose holders make repositories there."""


@dataclass(frozen=True)
class Target:
    """A repository and who would write to it. ``files`` are those it holds, ``commit`` its newest, if it exists.

    ``may_write`` is ``None`` where only trying tells, as with a fine-grained token.
    """

    repo: str
    url: str
    user: str
    may_write: bool | None
    exists: bool
    private: bool | None = None
    commit: str | None = None
    files: tuple[str, ...] = ()

    def replaced(self, names: Collection[str]) -> list[str]:
        """Files that pushing ``names`` would change or, being the weights of another export, remove."""
        return [file for file in self.files if file in names or file in self.removed(names)]

    def removed(self, names: Collection[str]) -> list[str]:
        """Weights of an earlier export that ``names`` do not replace: beside new ones they would be taken for them."""
        return [file for file in self.files if is_weights(file) and file not in names]

    def refusal(self, names: Collection[str], *, private: bool, force: bool) -> str | None:
        """Why pushing ``names`` there is refused, in one line; ``None`` where it is not."""
        if self.may_write is False:
            return (
                f"the token of {self.user!r} may not write to {self.repo}: use one that may (HF_TOKEN, `hf auth login`)"
            )
        if private and self.exists and not self.private:
            return f"{self.repo} exists and is public: --private is for a new repository"
        if (replaced := self.replaced(names)) and not force:
            return f"{self.repo} holds {replaced[0]!r}: choose another repository, or replace its files with --force"
        return None


def ask(repo: str) -> Target:
    """What the Hub says of ``repo``, and of the user whose token is set; changes nothing.

    Raises InputError for a wrong name, no token or one that is not accepted, ActvarError where the Hub fails.
    """
    hub = client()
    if "/" not in repo:
        raise InputError(f"{repo!r} is no repository name: write owner/repo")
    check_repo(repo)
    if hub.constants.HF_HUB_OFFLINE:
        raise InputError(f"HF_HUB_OFFLINE forbids pushing to {repo}: unset it")
    if hub.get_token() is None:
        raise InputError(f"pushing to {repo} needs a token that may write: set HF_TOKEN, or run `hf auth login`")
    api = hub.HfApi(library_name="actvar")
    try:
        user = api.whoami()
        url = f"{hub.constants.ENDPOINT}/{repo}"
        try:
            info = api.model_info(repo)
        except hub.errors.RepositoryNotFoundError:
            return Target(repo, url, user["name"], _may_write(repo, user), exists=False)
    # The client lets through the errors of several HTTP libraries; all become one line.
    except Exception as error:
        raise explain_push(error, repo) from error
    files = tuple(file.rfilename for file in info.siblings or ())
    return Target(repo, url, user["name"], _may_write(repo, user), True, bool(info.private), info.sha, files)


def push(folder: Path, target: Target, *, message: str, private: bool = False, progress: Progress | None = None) -> str:
    """Upload all files of ``folder`` and return the address of the commit; a repository that is not there is made.

    Other files of the repository stay. Large files go first, one by one, then one commit shows all of them together:
    an interrupted push changes nothing, and the next one sends only what is not there yet.
    """
    hub = client()
    api = hub.HfApi(library_name="actvar")
    paths = sorted(folder.iterdir())
    operations = [hub.CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path) for path in paths]
    removals = [hub.CommitOperationDelete(name) for name in target.removed([path.name for path in paths])]
    total = sum(path.stat().st_size for path in paths)
    hub.utils.disable_progress_bars()
    try:
        with (progress or Progress()).task(f"pushing to {target.repo}", total) as task:
            if not target.exists:
                api.create_repo(target.repo, private=private or None, exist_ok=True)
            for operation, path in zip(operations, paths, strict=True):
                api.preupload_lfs_files(target.repo, additions=[operation])
                task.advance(path.stat().st_size, note=path.name)
            made = api.create_commit(
                target.repo, [*operations, *removals], commit_message=message, parent_commit=target.commit
            )
    except Exception as error:
        raise explain_push(error, target.repo) from error
    return str(made.commit_url)


def _may_write(repo: str, user: Mapping[str, Any]) -> bool | None:
    """Whether the token may write to ``repo``, by what the Hub says of its owner."""
    owner, role = repo.split("/")[0], user.get("auth", {}).get("accessToken", {}).get("role")
    roles = {org["name"]: org.get("roleInOrg") for org in user.get("orgs", ())}
    if role == "read" or (owner != user["name"] and owner not in roles):
        return False
    if role != "write" or (owner in roles and roles[owner] is None):
        return None
    return owner == user["name"] or roles[owner] in WRITES
