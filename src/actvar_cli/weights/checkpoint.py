"""Reading the tensors of any checkpoint a user may have, without ever running code from it.

Tensors stay mapped from the file: nothing is copied until somebody writes to it.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from actvar_cli.errors import InputError
from actvar_cli.weights.files import is_safetensors
from actvar_cli.weights.shards import is_index, read_shards, refuse_single

TRANSFORMER_MARK = "pos_1LC"
TOKENIZER_MARK = "quantize.embedding.weight"
# Whoever compiled or wrapped the model (torch.compile, DDP, FSDP) has these in the middle of the keys.
_WRAPPERS = re.compile(r"(^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module)\.")
# An exponential moving average of the weights: `ema.`, `var_ema.`, `state_dict_ema.`, `ema_model.`.
_AVERAGE = re.compile(r"(^|[._])ema[._]", re.IGNORECASE)


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: tensors under published keys, of a transformer, a tokenizer or both; metadata as stored."""

    path: Path
    transformer: dict[str, Tensor] | None
    tokenizer: dict[str, Tensor] | None
    metadata: dict[str, str]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a safetensors file, the shards of an index, a published ``.pth`` or a training checkpoint.

    Raises InputError, one line, if the file is missing, no checkpoint, damaged, or a pickle that wants code.
    """
    start = _start(path)
    content: Any
    metadata: dict[str, str] = {}
    if is_index(path):
        content, metadata = read_shards(path)
    # Safetensors first: its header's length comes before the brace, and may begin like a pickle (0x80).
    elif is_safetensors(path):
        refuse_single(path)
        content, metadata = read_safetensors(path)
    elif start[:2] == b"PK" or start[:1] == b"\x80":
        content = _read_pickle(path, mmap=start[:2] == b"PK")
    else:
        raise InputError(f"{path} is not a checkpoint{_looks_like(start)}: expected .safetensors or .pth")
    transformer, tokenizer = _find(content, TRANSFORMER_MARK), _find(content, TOKENIZER_MARK)
    if transformer is None and tokenizer is None:
        raise InputError(f"{path} holds no VAR: no tensor is called {TRANSFORMER_MARK!r}{_some_keys(content)}")
    return Checkpoint(path, transformer, tokenizer, metadata)


def _start(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not start:
        raise InputError(f"{path} is not a checkpoint: the file is empty")
    return start


def _looks_like(start: bytes) -> str:
    text = start.lstrip().lower()
    if text.startswith(b"<"):
        return " but a web page (a download that failed?)"
    if text.startswith(b"version https://git-lfs"):
        return " but a Git LFS pointer (run `git lfs pull`)"
    return ""


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, mapped; InputError where it is damaged."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            return tensors, dict(file.metadata() or {})
    except SafetensorError as error:
        raise InputError(f"{path} is a damaged or truncated safetensors file ({error})") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _read_pickle(path: Path, *, mmap: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        if reason.startswith("Unsupported operand"):
            raise InputError(f"{path} is a damaged checkpoint, or a pickle of something else than tensors") from error
        found = re.search(r"GLOBAL ([\w.]+)", reason)
        raise InputError(
            f"{path} holds more than tensors{f' (it asks for {found[1]})' if found else ''}: opening it could run any "
            "code, so it is refused; save the plain state dict instead, best as safetensors"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    # A damaged file fails in as many ways as there are places to cut it.
    except Exception as error:
        reason = str(error).strip().split("\n")[0].split(". This")[0]
        raise InputError(f"{path} is a damaged checkpoint ({type(error).__name__}: {reason[:160]})") from error


def _mappings(content: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All mappings inside ``content`` by their dotted paths, outer ones first, siblings in the file's order."""
    if not isinstance(content, Mapping) or depth > 4:
        return
    yield path, content
    for key, value in content.items():
        yield from _mappings(value, f"{path}{key}.", depth + 1)


def _find(content: Any, mark: str) -> dict[str, Tensor] | None:
    """The tensors beside the one called ``mark``, in whatever it is nested, with whatever prefix.

    Where a training checkpoint holds an average of the weights (EMA) too, that is what one samples from.
    """
    found: list[tuple[bool, dict[str, Tensor]]] = []
    for path, mapping in _mappings(content):
        clean = {_WRAPPERS.sub("", str(k)): v for k, v in mapping.items() if isinstance(v, Tensor)}
        prefixes = [k.removesuffix(mark) for k in clean if k == mark or k.endswith(f".{mark}")]
        for prefix in sorted(prefixes, key=len):
            tensors = {k.removeprefix(prefix): v for k, v in clean.items() if k.startswith(prefix)}
            found.append((bool(_AVERAGE.search(path + prefix)), tensors))
    return max(found, key=lambda one: one[0])[1] if found else None


def _some_keys(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"; it holds a {type(content).__name__}"
    keys = [str(key) for key in list(content)[:3]]
    return f"; it holds {', '.join(map(repr, keys))}{' …' if len(content) > 3 else ''}" if keys else "; it is empty"
