"""Writing files of tensors one tensor at a time: at no moment is there a second copy of the model.

The writers of the libraries want all tensors at once. Reordering the neurons, or another dtype, would then take the
model's bytes a second time.

Formats: safetensors (8 bytes length, JSON header, data); ``.pth`` (a zip of one pickle and one record per storage).
"""

from __future__ import annotations

import io
import json
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

NAMES: dict[torch.dtype, tuple[str, Any]] = {
    torch.float64: ("F64", torch.DoubleStorage),
    torch.float32: ("F32", torch.FloatStorage),
    torch.float16: ("F16", torch.HalfStorage),
    torch.bfloat16: ("BF16", torch.BFloat16Storage),
    torch.int64: ("I64", torch.LongStorage),
    torch.int32: ("I32", torch.IntStorage),
    torch.int16: ("I16", torch.ShortStorage),
    torch.int8: ("I8", torch.CharStorage),
    torch.uint8: ("U8", torch.ByteStorage),
    torch.bool: ("BOOL", torch.BoolStorage),
}
"""What safetensors and ``.pth`` call each dtype."""

ALIGNMENT = 64
"""Bytes that a storage inside a ``.pth`` begins at a multiple of, so that the file can be mapped."""


@dataclass(frozen=True)
class Later:
    """A tensor that is made when it is written: its ``shape`` and ``dtype`` are known before."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Its bytes in the file."""
        return prod(self.shape) * self.dtype.itemsize

    def data(self) -> memoryview:
        """The bytes themselves."""
        made = self.make().detach().cpu().to(self.dtype).contiguous()
        assert made.shape == self.shape, "what is written is what was announced"
        return made.reshape(-1).view(torch.uint8).numpy().data


def later(tensor: Tensor, dtype: torch.dtype | None = None, change: Callable[[Tensor], Tensor] | None = None) -> Later:
    """``tensor`` in ``dtype`` if it is floating (``None``: as it is), after ``change``, which keeps its shape."""
    kept = dtype is None or not tensor.is_floating_point()
    return Later(
        tuple(tensor.shape),
        tensor.dtype if kept or dtype is None else dtype,
        (lambda: tensor) if change is None else (lambda: change(tensor)),
    )


def safetensors_header(tensors: Mapping[str, Later], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """All that comes before the data in a safetensors file, and the order in which the data follow."""
    # Wide dtypes first: every tensor then begins at a multiple of its element's size.
    order = sorted(tensors, key=lambda key: -tensors[key].dtype.itemsize)
    described: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for key in order:
        tensor = tensors[key]
        described[key] = {
            "dtype": NAMES[tensor.dtype][0],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def safetensors_size(tensors: Mapping[str, Later], metadata: Mapping[str, str]) -> int:
    """Bytes of the file that `write_safetensors` would write."""
    return len(safetensors_header(tensors, metadata)[0]) + sum(tensor.nbytes for tensor in tensors.values())


def write_safetensors(path: Path, tensors: Mapping[str, Later], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file to ``path`` itself."""
    header, order = safetensors_header(tensors, metadata)
    with open(path, "wb") as file:
        file.write(header)
        for key in order:
            file.write(tensors[key].data())


class _Stored:
    """Pickled as the tensor whose storage is the record ``key``."""

    def __init__(self, key: str, tensor: Later) -> None:
        self.key, self.tensor = key, tensor

    def __reduce__(self) -> tuple[Any, ...]:
        strides = torch.empty(self.tensor.shape, device="meta").stride()
        # What torch.save writes for a tensor: storage, offset, size, stride, requires_grad, hooks.
        return torch._utils._rebuild_tensor_v2, (_Record(self), 0, self.tensor.shape, strides, False, OrderedDict())


@dataclass(frozen=True)
class _Record:
    of: _Stored


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Record):
            return None
        tensor = obj.of.tensor
        return "storage", NAMES[tensor.dtype][1], obj.of.key, "cpu", prod(tensor.shape)


def write_pth(path: Path, tensors: Mapping[str, Later]) -> None:
    """Write a state dict to ``path`` itself, as torch.save would, to be read by torch.load."""
    pickled = io.BytesIO()
    records = {str(number): tensor for number, tensor in enumerate(tensors.values())}
    stored = (_Stored(key, tensor) for key, tensor in records.items())
    _Pickler(pickled, protocol=2).dump(dict(zip(tensors, stored, strict=True)))
    with open(path, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        _record(archive, file, "data.pkl", pickled.getvalue())
        _record(archive, file, "byteorder", sys.byteorder.encode())
        for key, tensor in records.items():
            _record(archive, file, f"data/{key}", tensor.data())
        _record(archive, file, "version", b"3\n")


def _record(archive: zipfile.ZipFile, file: BinaryIO, name: str, data: bytes | memoryview) -> None:
    info = zipfile.ZipInfo(f"archive/{name}")
    large = len(data) > zipfile.ZIP64_LIMIT // 2
    # The header is 30 bytes, the name, this field that readers skip, and 20 bytes more for a large record.
    padding = -(file.tell() + 30 + len(info.filename) + 4 + 20 * large) % ALIGNMENT
    info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    with archive.open(info, "w", force_zip64=large) as record:
        record.write(data)
