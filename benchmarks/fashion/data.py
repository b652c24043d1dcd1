"""Fashion-MNIST from its Debian package, padded to 32 x 32, in [-1, 1]."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PACKAGE = "dataset-fashion-mnist"
FOLDER = "usr/share/datasets/fashion-mnist"


def download(work: Path) -> Path:
    """Download and unpack the Debian package under ``work`` (once); returns the root of the unpacked files."""
    root = work / "data"
    if not (root / FOLDER).exists():
        work.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", PACKAGE], cwd=work, check=True)
        deb = next(work.glob(f"{PACKAGE}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(deb), str(root)], check=True)
    return root


def _idx(path: Path) -> np.ndarray:
    raw = gzip.decompress(path.read_bytes())
    dims = raw[3]
    shape = np.frombuffer(raw, ">i4", count=dims, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


def load(root: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 32, 32) uint8 and labels (N,) of ``train`` or ``test``; zero-padded by two pixels."""
    stem = {"train": "train", "test": "t10k"}[split]
    images = _idx(root / FOLDER / f"{stem}-images-idx3-ubyte.gz")
    labels = _idx(root / FOLDER / f"{stem}-labels-idx1-ubyte.gz")
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None]
    return torch.from_numpy(padded.copy()), torch.from_numpy(labels.astype(np.int64))


def to_float(images: Tensor) -> Tensor:
    """uint8 pixels to [-1, 1]."""
    return images.float().div_(127.5).sub_(1)
