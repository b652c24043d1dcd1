"""A model of the Hub, be it one file or several shards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath

from actvar_cli.errors import ActvarError
from actvar_cli.progress import Progress
from actvar_cli.weights.fetch import DEFAULT_FILE, here, hub_file, parse_hub_name
from actvar_cli.weights.shards import INDEX, is_index, read_index
from actvar_cli.weights.zoo import HubFile


def hub_model(name: str, *, force: bool = False, progress: Progress | None = None) -> tuple[HubFile, Path]:
    """What ``hf://owner/repo[@revision][/file]`` stands for, fetched if it is not on this machine; with its path.

    Where nobody names a file and there is no ``model.safetensors``, it is the index of shards, which come with it.
    """
    file = parse_hub_name(name)
    try:
        path = hub_file(file, force=force, progress=progress)
    except ActvarError as error:
        index = replace(file, file=INDEX)
        # Where the network is down, what is here may be all there is.
        if file.file != DEFAULT_FILE or not (is_missing(error) or here(index)):
            raise
        try:
            path = hub_file(index, force=force, progress=progress)
        except ActvarError:
            raise error from None
        file = index
    if is_index(path):
        # All of one commit, even if somebody pushes meanwhile.
        depth = len(PurePosixPath(file.file).parts)
        file = replace(file, revision=path.parents[depth - 1].name)
        for shard in read_index(path):
            hub_file(sibling(file, shard), force=force, progress=progress)
    return file, path


def sibling(file: HubFile, name: str) -> HubFile:
    """The file called ``name`` in the same folder of the repository."""
    return replace(file, file=str(PurePosixPath(file.file).with_name(name)), size=0, sha256="")


def is_missing(error: ActvarError) -> bool:
    """Whether the repository, or a cache that cannot ask it, has no such file."""
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import EntryNotFoundError

    return HF_HUB_OFFLINE or isinstance(error.__cause__, EntryNotFoundError)
