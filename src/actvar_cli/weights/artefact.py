"""The artefact: one safetensors file that describes itself.

It holds the transformer's tensors under their published keys (and those that actvar adds), and in its metadata
``format: pt``, ``actvar.config`` (`ModelConfig` as JSON) and ``actvar.lineage`` (what made it, as JSON). The tokenizer
is referenced: by the name of a known model, or as a file beside the artefact; always with its sha256.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeGuard

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from actvar_cli.errors import InputError
from actvar_cli.model.config import FORMAT_VERSION, ModelConfig, TokenizerReference
from actvar_cli.model.precision import dtype_called
from actvar_cli.model.sampling import ActVAR
from actvar_cli.weights.files import file_digest, is_safetensors, new_file, refuse_existing
from actvar_cli.weights.shards import files_of, is_index
from actvar_cli.weights.stream import Later, later, write_safetensors
from actvar_cli.weights.zoo import KNOWN

__all__ = [
    "described",
    "file_digest",
    "is_artefact",
    "parse_config",
    "read_config",
    "read_lineage",
    "refuse_artefact",
    "save",
    "tokenizer_beside",
    "tokenizer_tensors",
    "transformer_tensors",
    "write_tensors",
    "write_tokenizer",
]

CONFIG_KEY, LINEAGE_KEY = "actvar.config", "actvar.lineage"


def save(
    path: str | Path, model: ActVAR, lineage: Mapping[str, Any], *, dtype: str = "float32", force: bool = False
) -> Path:
    """Write ``model``'s transformer as an artefact, whole or not at all, and return its path.

    A tokenizer that is no known model's is written beside it, as ``<stem>.tokenizer.safetensors``. Raises InputError
    where a file exists and ``force`` is off, or ``dtype`` is not one of `precision.DTYPES`.
    """
    path = Path(path)
    reference = model.config.tokenizer_reference
    with ExitStack() as stack:
        temporary = stack.enter_context(new_file(path, force=force))
        if not _is_known(reference):
            beside = tokenizer_beside(path)
            digest = write_tokenizer(stack.enter_context(new_file(beside, force=force)), model)
            reference = TokenizerReference(name=beside.name, sha256=digest)
        _, metadata = described(model, reference, lineage)
        write_tensors(temporary, transformer_tensors(model, dtype), metadata)
    return path


def refuse_artefact(path: Path, config: ModelConfig, *, force: bool) -> None:
    """Raise InputError where `save` would refuse to write a model of ``config``; for before the work that makes it."""
    refuse_existing(path, force)
    if not _is_known(config.tokenizer_reference):
        refuse_existing(tokenizer_beside(path), force)


def _is_known(reference: TokenizerReference | None) -> TypeGuard[TokenizerReference]:
    return reference is not None and reference.name in KNOWN


def tokenizer_beside(path: Path) -> Path:
    """Where the tokenizer of the model in the file ``path`` is written, if it has one of its own."""
    return path.with_name(f"{path.stem}.tokenizer.safetensors")


def described(
    model: ActVAR, reference: TokenizerReference, lineage: Mapping[str, Any]
) -> tuple[ModelConfig, dict[str, str]]:
    """The config as it is stored, with the tokenizer at ``reference``, and the metadata of the file or every shard."""
    config = model.config.model_copy(update={"tokenizer_reference": reference, "format_version": FORMAT_VERSION})
    return config, {
        "format": "pt",
        CONFIG_KEY: config.model_dump_json(),
        LINEAGE_KEY: json.dumps(lineage, sort_keys=True, default=str),
    }


def transformer_tensors(model: ActVAR, dtype: str) -> dict[str, Later]:
    """What an artefact holds of ``model``, floating tensors in ``dtype`` (InputError where it is no `DTYPES`)."""
    return {key: later(tensor, dtype_called(dtype)) for key, tensor in model.transformer.state_dict().items()}


def tokenizer_tensors(model: ActVAR) -> dict[str, Later]:
    """The tensors of ``model``'s tokenizer, always float32.

    Rounding the codebook would change which code is nearest, and so the tokens of a picture.
    """
    return {key: later(tensor, torch.float32) for key, tensor in model.tokenizer.state_dict().items()}


def write_tokenizer(path: Path, model: ActVAR) -> str:
    """Write ``model``'s tokenizer to ``path`` itself and return the file's sha256."""
    write_tensors(path, tokenizer_tensors(model), {"format": "pt"})
    return file_digest(path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor | Later], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file to ``path`` itself, one tensor at a time."""
    made = {key: later(tensor) if isinstance(tensor, Tensor) else tensor for key, tensor in tensors.items()}
    write_safetensors(path, made, metadata)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file, or of the shards of an index; InputError where it is missing or damaged."""
    if not Path(path).is_file():
        raise InputError(f"no such file: {path}")
    path = files_of(Path(path))[-1]
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error})") from error


def is_artefact(path: str | Path) -> bool:
    """Whether a file holds actvar's configuration; a plain state dict does not, in whatever format."""
    return (is_index(path) or is_safetensors(path)) and CONFIG_KEY in read_metadata(path)


def read_config(path: str | Path) -> ModelConfig:
    """The configuration stored in an artefact; InputError where the file is none."""
    metadata = read_metadata(path)
    if CONFIG_KEY not in metadata:
        raise InputError(f"{path} is not an actvar artefact: its metadata has no {CONFIG_KEY!r}")
    return parse_config(metadata[CONFIG_KEY], path)


def read_lineage(path: str | Path) -> dict[str, Any]:
    """What made an artefact, as it was given to `save`; empty where nothing was recorded.

    Raises InputError where that is damaged.
    """
    try:
        lineage = json.loads(read_metadata(path).get(LINEAGE_KEY, "{}"))
    except ValueError as error:
        raise InputError(f"{path} has a damaged {LINEAGE_KEY!r}: {error}") from error
    if not isinstance(lineage, dict) or not isinstance(lineage.get("steps", []), list):
        raise InputError(f"{path} has a damaged {LINEAGE_KEY!r}: it is no object with a list of 'steps'")
    return lineage


def parse_config(text: str, path: str | Path) -> ModelConfig:
    """A stored configuration; InputError where a newer actvar wrote it, or it is damaged."""
    try:
        version = json.loads(text).get("format_version", FORMAT_VERSION)
        if version > FORMAT_VERSION:
            raise InputError(
                f"{path} has format version {version}, this actvar reads up to {FORMAT_VERSION}: install a newer actvar"
            )
        return ModelConfig.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "config"
        raise InputError(f"{path} has a damaged {CONFIG_KEY!r}: {where}: {first['msg']}") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path} has a damaged {CONFIG_KEY!r}: {error}") from error
