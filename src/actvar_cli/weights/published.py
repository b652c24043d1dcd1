"""The published layout: a transformer's weights under the keys of the authors' own code.

Whatever actvar adds (router, token gate, reconstruction) is left out and the neurons go back to where they were, so
what is written computes what the model computes with everything on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from actvar_cli.errors import InputError
from actvar_cli.model.experts import ExpertFFN
from actvar_cli.model.precision import dtype_called
from actvar_cli.model.sampling import ActVAR
from actvar_cli.model.var import VAR
from actvar_cli.weights.artefact import tokenizer_beside, write_tokenizer
from actvar_cli.weights.fashion import NOTICE, notice_of
from actvar_cli.weights.files import new_file
from actvar_cli.weights.stream import Later, later, write_pth, write_safetensors
from actvar_cli.weights.zoo import KNOWN

SUFFIXES = (".safetensors", ".pth")


def published_tensors(model: ActVAR, dtype: str) -> dict[str, Later]:
    """The transformer's state dict as the published code would write it, its three derived buffers included.

    Every neuron is where it was before the FFNs were split; this is done as each tensor is written.
    """
    var = model.transformer
    with torch.device("meta"):
        dense = VAR(model.config.dense)
    tensors = {**var.state_dict(), **dict(var.named_buffers())}
    back: dict[str, Callable[[Tensor], Tensor]] = {}
    for i, block in enumerate(var.stack):
        if isinstance(block.ffn, ExpertFFN):
            order = block.ffn.permutation.argsort()
            back[f"blocks.{i}.ffn.fc1.weight"] = back[f"blocks.{i}.ffn.fc1.bias"] = partial(_take, 0, order)
            back[f"blocks.{i}.ffn.fc2.weight"] = partial(_take, 1, order)
    keys = (*dense.state_dict(), *dict(dense.named_buffers()))
    return {key: later(tensors[key], dtype_called(dtype), back.get(key)) for key in keys}


def published_state(model: ActVAR) -> dict[str, Tensor]:
    """The same, made at once: what the published code's own ``load_state_dict`` takes."""
    return {key: tensor.make().detach() for key, tensor in published_tensors(model, "float32").items()}


def _take(dim: int, order: Tensor, tensor: Tensor) -> Tensor:
    return tensor.detach().index_select(dim, order)


def check_suffix(path: Path) -> None:
    """Raise InputError where no published file is called so."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: the published layout is one file: call it .safetensors or .pth")


def write_published(path: Path, model: ActVAR, *, dtype: str = "float32", force: bool = False) -> list[Path]:
    """Write the transformer in the published layout, safetensors or ``.pth`` by the suffix; returns the files written.

    A tokenizer other than the published one goes beside it, as ``<stem>.tokenizer.safetensors``, and so does a notice
    that the pictures ask for. Whole or not at all.
    Raises InputError where a file exists and ``force`` is off, or the suffix is another.
    """
    check_suffix(path)
    reference, written = model.config.tokenizer_reference, [path]
    with ExitStack() as stack:
        temporary = stack.enter_context(new_file(path, force=force))
        entry = KNOWN.get(reference.name) if reference else None
        if entry is None or entry.embedded:
            written.append(tokenizer_beside(path))
            write_tokenizer(stack.enter_context(new_file(written[1], force=force)), model)
        if notice := notice_of(model):
            written.append(path.with_name(f"{path.stem}.{NOTICE}"))
            stack.enter_context(new_file(written[-1], force=force)).write_text(notice, encoding="utf-8")
        tensors = published_tensors(model, dtype)
        if path.suffix == ".pth":
            write_pth(temporary, tensors)
        else:
            write_safetensors(temporary, tensors, {"format": "pt"})
    return written
