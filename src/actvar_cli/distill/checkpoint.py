"""The state of a training that can be killed: one safetensors file, replaced whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, names: list[str], state: dict[str, Any]
) -> None:
    """Write weights, Adam moments of the parameters ``names`` (in the optimiser's order) and ``state`` (JSON)."""
    tensors = {f"model.{k}": v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    moments = optimizer.state_dict()["state"]
    for index, name in enumerate(names):
        for key, value in moments.get(index, {}).items():
            tensors[f"adam.{key}.{name}"] = torch.as_tensor(value).detach().cpu().clone()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    save_file(tensors, temporary, metadata={"format": "pt", "state": json.dumps(state)})
    os.replace(temporary, path)


def read_state(path: Path | None) -> dict[str, Any] | None:
    """The JSON state of a checkpoint, or ``None`` where there is none."""
    if path is None or not path.exists():
        return None
    with safe_open(path, framework="pt") as f:
        return json.loads(f.metadata()["state"])  # type: ignore[no-any-return]


def load_weights(path: Path, module: nn.Module, prefix: str) -> None:
    """Put back the weights of the part of the model whose keys begin with ``prefix``."""
    with safe_open(path, framework="pt") as f:
        keys = [key for key in f.keys() if key.startswith(f"model.{prefix}")]  # noqa: SIM118 - not a dict
        module.load_state_dict({key.removeprefix(f"model.{prefix}"): f.get_tensor(key) for key in keys})


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, names: list[str]) -> None:
    """Put weights and Adam moments back."""
    tensors: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as f:
        for key in f.keys():  # noqa: SIM118 - not a dict
            tensors[key] = f.get_tensor(key)
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    packed = optimizer.state_dict()
    for index, name in enumerate(names):
        found = {key: tensors.get(f"adam.{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
        if all(v is not None for v in found.values()):
            packed["state"][index] = found
    optimizer.load_state_dict(packed)
