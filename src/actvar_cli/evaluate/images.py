"""Pictures as arrays and files: grids, PNG, folders of PNG, npz; every file appears whole or not at all."""

from __future__ import annotations

from math import ceil, sqrt
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actvar_cli.weights.files import new_file, new_folder

Pixels = npt.NDArray[np.uint8]
"""(H, W, 3), 0 to 255."""


def to_uint8(images: Tensor) -> Tensor:
    """Images (B, C, H, W) in [0, 1] as uint8, rounded."""
    return images.float().clamp(0, 1).mul(255).round().to(torch.uint8)


def to_pixels(images: Tensor) -> Pixels:
    """uint8 images (B, C, H, W), C = 1 or 3, as (B, H, W, 3); grey is repeated."""
    rgb = images.cpu().permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
    return np.ascontiguousarray(rgb.numpy())


def make_grid(
    images: Tensor, *, labels: Tensor | None = None, columns: int | None = None, gap: int = 2, enlarge: int = 1
) -> Pixels:
    """Lay uint8 images (B, C, H, W) out in rows on white.

    With ``labels`` (B,) every class starts a row, in the order of first appearance; rows hold at most ``columns``
    images (default: the largest class, or a square without labels). ``gap`` pixels lie between and around; pixels are
    enlarged ``enlarge`` times.
    """
    pixels = to_pixels(images).repeat(enlarge, 1).repeat(enlarge, 2)
    groups: dict[int, list[int]] = {}
    for index, label in enumerate([0] * len(pixels) if labels is None else labels.tolist()):
        groups.setdefault(label, []).append(index)
    if columns is None:
        columns = ceil(sqrt(len(pixels))) if labels is None else max(map(len, groups.values()))
    rows = [group[i : i + columns] for group in groups.values() for i in range(0, len(group), columns)]
    height, width = pixels.shape[1] + gap, pixels.shape[2] + gap
    grid = np.full((len(rows) * height + gap, columns * width + gap, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, index in enumerate(row):
            top, left = gap + r * height, gap + c * width
            grid[top : top + height - gap, left : left + width - gap] = pixels[index]
    return grid


def write_png(path: Path, pixels: Pixels) -> None:
    """Write ``pixels`` to ``path`` itself."""
    # matplotlib is a dependency anyway and brings its own PNG writer; the import is slow, so it waits until needed.
    from matplotlib.image import imsave

    imsave(path, pixels, format="png")


def save_grid(path: str | Path, pixels: Pixels, *, force: bool = False) -> Path:
    """Write a grid as PNG; InputError where ``path`` exists and ``force`` is off."""
    with new_file(path, force=force) as temporary:
        write_png(temporary, pixels)
    return Path(path)


def file_names(labels: Tensor) -> list[str]:
    """A PNG's name for every image: its number and its class, such as ``00012_class3.png``."""
    return [f"{number:05d}_class{label}.png" for number, label in enumerate(labels.tolist())]


def save_folder(path: str | Path, images: Tensor, labels: Tensor, *, force: bool = False) -> Path:
    """Write uint8 images (B, C, H, W) as a folder of PNGs, named by number and class.

    ``force`` replaces a folder that holds nothing but such files. Raises InputError otherwise.
    """
    path = Path(path)
    ours = [p.name for p in path.glob("[0-9]*_class*.png")]
    with new_folder(path, replaceable=ours, force=force) as folder:
        for name, pixels in zip(file_names(labels), to_pixels(images), strict=True):
            write_png(folder / name, pixels)
    return path


def save_npz(path: str | Path, images: Tensor, labels: Tensor, *, force: bool = False) -> Path:
    """Write uint8 images as ``arr_0`` (N, H, W, 3) and labels as ``arr_1`` (N,): what the ADM evaluator reads."""
    with new_file(path, force=force) as temporary, temporary.open("wb") as file:
        np.savez(file, arr_0=to_pixels(images), arr_1=labels.cpu().numpy())
    return Path(path)
