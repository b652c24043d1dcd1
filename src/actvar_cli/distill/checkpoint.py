"""The state of a training that can be killed: one safetensors file, replaced whole."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from actvar_cli.distill.optimiser import Optimiser
from actvar_cli.errors import ActvarError


def save_checkpoint(path: Path, parts: Mapping[str, nn.Module], optimiser: Optimiser, state: dict[str, Any]) -> None:
    """Write the weights of ``parts``, of which the one called ``model`` learns, the optimiser's moments and ``state``.

    The last is written as JSON.
    """
    tensors = {
        f"{part}.{key}": tensor.detach().cpu().contiguous()
        for part, module in parts.items()
        for key, tensor in module.state_dict().items()
    }
    for name, moments in optimiser.moments().items():
        tensors |= {f"moment.{key}.{name}": value.detach().cpu().clone() for key, value in moments.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    try:
        save_file(tensors, temporary, metadata={"format": "pt", "state": json.dumps(state)})
    except SafetensorError as error:
        raise ActvarError(f"cannot write the checkpoint {path}: {error}") from error
    os.replace(temporary, path)


def read_state(path: Path | None) -> dict[str, Any] | None:
    """The JSON state of a checkpoint, or ``None`` where there is none."""
    if path is None or not path.exists():
        return None
    with safe_open(path, framework="pt") as f:
        return json.loads(f.metadata()["state"])  # type: ignore[no-any-return]


def load_weights(path: Path, module: nn.Module, part: str) -> None:
    """Put back the weights of the ``part`` that was saved under this name."""
    with safe_open(path, framework="pt") as f:
        keys = [key for key in f.keys() if key.startswith(f"{part}.")]  # noqa: SIM118 - not a dict
        module.load_state_dict({key.removeprefix(f"{part}."): f.get_tensor(key) for key in keys})


def load_checkpoint(path: Path, model: nn.Module, optimiser: Optimiser) -> None:
    """Put weights and moments back."""
    load_weights(path, model, "model")
    moments: dict[str, dict[str, Tensor]] = defaultdict(dict)
    with safe_open(path, framework="pt") as f:
        for key in f.keys():  # noqa: SIM118 - not a dict
            if key.startswith("moment."):
                _, kind, name = key.split(".", 2)
                where = "cpu" if kind == "step" else optimiser.parameters[name].device
                moments[name][kind] = f.get_tensor(key).to(where)
    optimiser.adopt(moments)
