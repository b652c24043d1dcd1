"""A model in several files: shards, and an index that says which tensor is in which, as the Hub's tools write them.

Every shard has the metadata of the whole, so that any of them says what the model is, and shards of two models that
lie in one folder are told apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from actvar_cli.errors import InputError

if TYPE_CHECKING:
    # At run time this is imported to list and to validate, which need no torch.
    from torch import Tensor

    from actvar_cli.weights.stream import Later

INDEX = "model.safetensors.index.json"
INDEX_SUFFIX = ".safetensors.index.json"
SHARD_SIZE = 5_000_000_000
"""Bytes of a file of weights, at most; as the Hub's own tools have it."""
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


def is_index(path: str | Path) -> bool:
    """Whether a file of that name is the index of shards."""
    return str(path).endswith(INDEX_SUFFIX)


def is_weights(name: str) -> bool:
    """Whether an export calls a file of weights, or the index of several, so."""
    return bool(re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json", name))


def own_weights(folder: Path) -> set[str]:
    """Files in ``folder`` that hold the weights of a model exported there, or their index."""
    return {path.name for path in folder.iterdir() if is_weights(path.name)} if folder.is_dir() else set()


def split(tensors: Mapping[str, Later], shard_size: int) -> dict[str, dict[str, Later]]:
    """Tensors by the file they go into: ``model.safetensors`` alone if they fit into ``shard_size`` bytes.

    A tensor larger than that gets a shard of its own.
    """
    from huggingface_hub import split_state_dict_into_shards_factory
    from huggingface_hub.constants import SAFETENSORS_WEIGHTS_FILE_PATTERN

    found = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern=SAFETENSORS_WEIGHTS_FILE_PATTERN,
        max_shard_size=shard_size,
    )
    return {file: {key: tensors[key] for key in keys} for file, keys in found.filename_to_tensors.items()}


def index_text(shards: Mapping[str, Mapping[str, Later]]) -> str:
    """The index of ``shards``, as JSON."""
    total = sum(tensor.nbytes for part in shards.values() for tensor in part.values())
    where = {key: file for file, part in shards.items() for key in part}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2) + "\n"


def read_index(index: Path) -> dict[str, list[str]]:
    """The keys in each shard, by its file name; InputError where the index is damaged or leaves its folder."""
    try:
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = dict.fromkeys(where.values())
    except FileNotFoundError:
        raise InputError(f"no such file: {index}") from None
    except OSError as error:
        raise InputError(f"cannot read {index}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is no index of shards: it has no 'weight_map' of file names") from error
    for name in names:
        if not isinstance(name, str) or re.search(r"[/\\:\0]", name) or not name.endswith(".safetensors"):
            raise InputError(f"{index} names {name!r}, which is no safetensors file beside it")
    if not names:
        raise InputError(f"{index} is no index of shards: its 'weight_map' is empty")
    return {name: [key for key, file in where.items() if file == name] for name in names}


def files_of(path: Path) -> list[Path]:
    """The files that a model at ``path`` is made of: the index and its shards, or ``path`` alone.

    Raises InputError where a shard is missing.
    """
    if not is_index(path):
        return [path]
    shards = [path.parent / name for name in read_index(path)]
    for shard in shards:
        if not shard.is_file():
            raise InputError(f"{path} needs {shard.name}, which is missing beside it: a part of the model is not here")
    return [path, *shards]


def refuse_single(path: Path) -> None:
    """Raise InputError where ``path`` is called like one of several shards."""
    if match := _SHARD.fullmatch(path.name):
        index = path.with_name(match[1] + INDEX_SUFFIX)
        raise InputError(f"{path} is one of {int(match[3])} shards of a model: name their folder, or {index.name}")


def read_shards(index: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of all shards, mapped, and the metadata of the whole; InputError where anything is wrong."""
    from actvar_cli.weights.checkpoint import read_safetensors

    files = files_of(index)[1:]
    tensors: dict[str, Tensor] = {}
    first: dict[str, str] | None = None
    for file, keys in zip(files, read_index(index).values(), strict=True):
        found, metadata = read_safetensors(file)
        first = metadata if first is None else first
        if metadata != first:
            raise InputError(f"{file} and {files[0].name} are parts of two different models: export the model again")
        for key in keys:
            if key not in found:
                raise InputError(f"{file} has no tensor {key!r}, although {index.name} says so")
            tensors[key] = found[key]
    return tensors, first or {}
