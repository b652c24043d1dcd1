"""Files written one tensor at a time, read by the libraries whose formats they are."""

from __future__ import annotations

import weakref
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from actvar_cli.weights.stream import NAMES, Later, later, safetensors_size, write_pth, write_safetensors


def tensors() -> dict[str, Tensor]:
    """Every dtype, and the shapes that are easily forgotten."""
    made = {str(dtype): torch.arange(7).reshape(7, 1).to(dtype) for dtype in NAMES}
    return {**made, "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "turned": torch.arange(6.0).view(2, 3).T}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def test_safetensors(tmp_path: Path) -> None:
    path, metadata = tmp_path / "x.safetensors", {"format": "pt", "ключ": '"\n'}
    ready = {key: later(tensor) for key, tensor in tensors().items()}
    write_safetensors(path, ready, metadata)
    assert same(load_file(path), tensors())
    with safe_open(path, "pt") as file:
        assert file.metadata() == metadata
    assert path.stat().st_size == safetensors_size(ready, metadata)


@pytest.mark.parametrize("mmap", [False, True])
def test_pth(tmp_path: Path, mmap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in (zipfile.ZIP64_LIMIT, 20):
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
        write_pth(tmp_path / "x.pth", {key: later(tensor) for key, tensor in tensors().items()})
        found = torch.load(tmp_path / "x.pth", weights_only=True, mmap=mmap)
        assert same(found, tensors())
        assert list(found) == list(tensors())
        assert all(tensor.is_contiguous() for tensor in found.values())
        assert not mmap or all(tensor.data_ptr() % 64 == 0 for tensor in found.values())
        assert zipfile.ZipFile(tmp_path / "x.pth").testzip() is None


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_no_tensor_is_kept_once_it_is_written(tmp_path: Path, suffix: str) -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def make() -> Tensor:
        nonlocal most
        most = max(most, sum(ref() is not None for ref in alive))
        memory = np.full(1000, len(alive), dtype=np.float32)
        alive.append(weakref.ref(memory))
        return torch.from_numpy(memory)

    ready = {str(n): Later((1000,), torch.float32, make) for n in range(4)}
    if suffix == "pth":
        write_pth(tmp_path / "x", ready)
    else:
        write_safetensors(tmp_path / "x", ready, {})
    assert (len(alive), most) == (4, 0)


def test_casts_and_changes() -> None:
    whole, half = torch.arange(3), torch.randn(2, 3)
    assert later(whole, torch.bfloat16).dtype == torch.int64
    changed = later(half, torch.bfloat16, lambda tensor: tensor.flip(0))
    assert (changed.shape, changed.dtype, changed.nbytes) == ((2, 3), torch.bfloat16, 12)
    assert bytes(changed.data()) == bytes(half.flip(0).bfloat16().view(torch.uint8).numpy().data)
