"""Sampling the pictures that a user asked for, in batches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from actvar_cli.errors import InputError
from actvar_cli.progress import Progress
from actvar_cli.recipe.steps import SampleSettings

if TYPE_CHECKING:
    from torch import Tensor

    from actvar_cli.model.sampling import ActVAR

SHOWN_CLASSES = 10
"""Classes that are sampled when nobody says which, at most."""


def draw(model: ActVAR, settings: SampleSettings, *, seed: int, progress: Progress) -> tuple[Tensor, Tensor]:
    """uint8 images (B, C, S, S) and their labels (B,), ``settings.count`` of each class.

    The first batch is drawn under ``seed`` itself, as `ActVAR.sample` would with the same labels. Raises InputError for
    a class that the model has not, or a budget it cannot work at.
    """
    import torch

    from actvar_cli.evaluate.evaluate import batch_seed
    from actvar_cli.evaluate.images import to_uint8
    from actvar_cli.model.sampling import SamplingSettings, balanced_labels, check_classes
    from actvar_cli.recipe.models import at_budget

    total = model.config.transformer.num_classes
    check_classes(settings.classes or (), total)
    chosen = list(settings.classes or balanced_labels(min(total, SHOWN_CLASSES), total).tolist())
    labels = torch.tensor(chosen).repeat_interleave(settings.count)
    how = SamplingSettings(settings.cfg, settings.top_k, settings.top_p, settings.more_smooth)
    images = []
    with at_budget(model, settings.budget), progress.task("sampling", len(labels)) as task:
        for number, part in enumerate(labels.split(settings.batch_for(model.config))):
            batch = model.sample(part, seed=batch_seed(seed, number) if number else seed, settings=how)
            images.append(to_uint8(batch.images).cpu())
            task.advance(len(part))
    return torch.cat(images), labels


def check_kind(path: Path) -> None:
    """Raise InputError where `save` would not know what to write to ``path``."""
    if path.suffix.lower() not in ("", ".png", ".npz"):
        raise InputError(f"{path}: samples are written as .png (a grid), .npz, or a folder of PNGs (no suffix)")


def own_files(folder: Path) -> list[str]:
    """Names of the files in ``folder`` that `save` has written there."""
    return [path.name for path in folder.glob("[0-9]*_class*.png")]


def save(path: Path, images: Tensor, labels: Tensor, *, force: bool) -> Path:
    """Write images as a grid (``.png``), as arrays (``.npz``) or as a folder of PNGs (no suffix)."""
    from actvar_cli.evaluate.images import make_grid, save_folder, save_grid, save_npz

    kind = path.suffix.lower()
    if kind == ".npz":
        return save_npz(path, images, labels, force=force)
    if kind == "":
        return save_folder(path, images, labels, force=force)
    return save_grid(path, make_grid(images, labels=labels, enlarge=enlargement(images)), force=force)


def enlargement(images: Tensor) -> int:
    """How many times to enlarge the pixels of small images (B, C, S, S) so that a person sees something."""
    return max(1, 96 // images.shape[-1])
