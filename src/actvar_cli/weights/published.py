"""The published layout: a transformer's weights under the keys of the authors' own code.

Whatever actvar adds (router, token gate, reconstruction) is left out and the neurons go back to where they were, so
what is written computes what the model computes with everything on.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from actvar_cli.errors import InputError
from actvar_cli.model.experts import ExpertFFN
from actvar_cli.model.sampling import ActVAR
from actvar_cli.model.var import VAR
from actvar_cli.weights.artefact import as_stored, tokenizer_beside, write_tensors, write_tokenizer
from actvar_cli.weights.files import new_file
from actvar_cli.weights.zoo import KNOWN

SUFFIXES = (".safetensors", ".pth")


def published_state(model: ActVAR) -> dict[str, Tensor]:
    """The transformer's state dict as the published code would write it, its three derived buffers included."""
    var = model.transformer
    with torch.device("meta"):
        dense = VAR(model.config.dense)
    tensors = {**var.state_dict(), **dict(var.named_buffers())}
    state = {key: tensors[key] for key in (*dense.state_dict(), *dict(dense.named_buffers()))}
    for i, block in enumerate(var.stack):
        if isinstance(block.ffn, ExpertFFN):
            back = block.ffn.permutation.argsort()
            for key in ("fc1.weight", "fc1.bias"):
                state[f"blocks.{i}.ffn.{key}"] = state[f"blocks.{i}.ffn.{key}"][back]
            state[f"blocks.{i}.ffn.fc2.weight"] = state[f"blocks.{i}.ffn.fc2.weight"][:, back]
    return state


def check_suffix(path: Path) -> None:
    """Raise InputError where no published file is called so."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: the published layout is one file: call it .safetensors or .pth")


def write_published(path: Path, model: ActVAR, *, dtype: str = "float32", force: bool = False) -> list[Path]:
    """Write the transformer in the published layout, safetensors or ``.pth`` by the suffix; returns the files written.

    A tokenizer other than the published one goes beside it, as ``<stem>.tokenizer.safetensors``. Whole or not at all.
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
        state = {key: as_stored(tensor, dtype) for key, tensor in published_state(model).items()}
        if path.suffix == ".pth":
            torch.save(state, temporary)
        else:
            write_tensors(temporary, state, {"format": "pt"})
    return written
