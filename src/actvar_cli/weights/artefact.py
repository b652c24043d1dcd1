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
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from actvar_cli.errors import ActvarError, InputError, did_you_mean
from actvar_cli.model.config import FORMAT_VERSION, ModelConfig, TokenizerReference
from actvar_cli.model.sampling import ActVAR
from actvar_cli.weights.files import file_digest, is_safetensors, new_file
from actvar_cli.weights.zoo import KNOWN

__all__ = [
    "DTYPES",
    "as_stored",
    "file_digest",
    "is_artefact",
    "parse_config",
    "read_config",
    "read_lineage",
    "save",
    "tokenizer_beside",
    "write_tensors",
    "write_tokenizer",
    "write_transformer",
]

CONFIG_KEY, LINEAGE_KEY = "actvar.config", "actvar.lineage"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types that floating tensors can be stored in; whole numbers stay what they are."""


def save(
    path: str | Path, model: ActVAR, lineage: Mapping[str, Any], *, dtype: str = "float32", force: bool = False
) -> Path:
    """Write ``model``'s transformer as an artefact, whole or not at all, and return its path.

    A tokenizer that is no known model's is written beside it, as ``<stem>.tokenizer.safetensors``. Raises InputError
    where a file exists and ``force`` is off, or ``dtype`` is not one of `DTYPES`.
    """
    path = Path(path)
    reference = model.config.tokenizer_reference
    with ExitStack() as stack:
        temporary = stack.enter_context(new_file(path, force=force))
        if not (reference and reference.name in KNOWN):
            beside = tokenizer_beside(path)
            digest = write_tokenizer(stack.enter_context(new_file(beside, force=force)), model)
            reference = TokenizerReference(name=beside.name, sha256=digest)
        write_transformer(temporary, model, reference, lineage, dtype=dtype)
    return path


def tokenizer_beside(path: Path) -> Path:
    """Where the tokenizer of the model in the file ``path`` is written, if it has one of its own."""
    return path.with_name(f"{path.stem}.tokenizer.safetensors")


def write_transformer(
    path: Path, model: ActVAR, reference: TokenizerReference, lineage: Mapping[str, Any], *, dtype: str
) -> ModelConfig:
    """Write the transformer to ``path`` itself, with its tokenizer at ``reference``; returns the config as stored."""
    config = model.config.model_copy(update={"tokenizer_reference": reference, "format_version": FORMAT_VERSION})
    metadata = {
        "format": "pt",
        CONFIG_KEY: config.model_dump_json(),
        LINEAGE_KEY: json.dumps(lineage, sort_keys=True, default=str),
    }
    _write(path, model.transformer, dtype, metadata)
    return config


def write_tokenizer(path: Path, model: ActVAR) -> str:
    """Write ``model``'s tokenizer to ``path`` itself, as plain float32 tensors, and return the file's sha256.

    Always float32: rounding the codebook would change which code is nearest, and so the tokens of a picture.
    """
    _write(path, model.tokenizer, "float32", {"format": "pt"})
    return file_digest(path)


def _write(path: Path, module: nn.Module, dtype: str, metadata: dict[str, str]) -> None:
    write_tensors(path, {key: as_stored(tensor, dtype) for key, tensor in module.state_dict().items()}, metadata)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file to ``path`` itself, with the permissions that the user's files have."""
    # Made first to learn which permissions the user's files have: the library gives its own to nobody else to read.
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        raise ActvarError(f"cannot write {path}: {error}") from error
    path.chmod(mode)


def as_stored(tensor: Tensor, dtype: str) -> Tensor:
    """A tensor as it goes into a file: on the CPU, contiguous, and of ``dtype`` (one of `DTYPES`) if it is floating."""
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}{did_you_mean(dtype, list(DTYPES))}: one of {', '.join(DTYPES)}")
    stored = tensor.detach().cpu()
    return stored.to(DTYPES[dtype]).contiguous() if stored.is_floating_point() else stored.contiguous()


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file; InputError where it is missing or damaged."""
    if not Path(path).is_file():
        raise InputError(f"no such file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error})") from error


def is_artefact(path: str | Path) -> bool:
    """Whether a file holds actvar's configuration; a plain state dict does not, in whatever format."""
    return is_safetensors(path) and CONFIG_KEY in read_metadata(path)


def read_config(path: str | Path) -> ModelConfig:
    """The configuration stored in an artefact; InputError where the file is none."""
    metadata = read_metadata(path)
    if CONFIG_KEY not in metadata:
        raise InputError(f"{path} is not an actvar artefact: its metadata has no {CONFIG_KEY!r}")
    return parse_config(metadata[CONFIG_KEY], path)


def read_lineage(path: str | Path) -> dict[str, Any]:
    """What made an artefact, as it was given to `save`; empty where nothing was recorded."""
    return dict(json.loads(read_metadata(path).get(LINEAGE_KEY, "{}")))


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
