"""Pictures of teacher and student under the same seeds, for looking at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from actvar_cli.evaluate.evaluate import batch_seed, check_alike
from actvar_cli.evaluate.images import to_uint8
from actvar_cli.evaluate.reference import CLASS_NAMES, real_images, serves
from actvar_cli.model.sampling import ActVAR, SamplingSettings

_STRIP = 256
"""Width in pixels that a row of one class should have, about."""


@dataclass(frozen=True)
class ClassPictures:
    """One class: its name, and uint8 images (n, C, S, S) of teacher and student, image for image of the same seeds.

    ``real`` are real images of the class, where they are shipped.
    """

    name: str
    teacher: Tensor
    student: Tensor
    real: Tensor | None


def sample_pairs(
    model: ActVAR,
    teacher: ActVAR,
    *,
    seed: int = 0,
    classes: int = 10,
    per_class: int | None = None,
) -> list[ClassPictures]:
    """Sample ``per_class`` images of up to ``classes`` classes from both models as they are set.

    ``per_class=None`` takes as many as make a strip of about 256 pixels. Raises InputError where the two models have
    different tokens or classes.
    """
    check_alike(model, teacher)
    settings = SamplingSettings(model.config.usual_cfg)
    config = teacher.config
    total = config.transformer.num_classes
    chosen = [i * total // min(classes, total) for i in range(min(classes, total))]
    size = per_class or max(1, _STRIP // config.tokenizer.image_size)
    known = serves(teacher)
    real, real_labels = real_images() if known else (None, torch.empty(0))
    rows: list[ClassPictures] = []
    for label in chosen:
        labels = [label] * size
        left, right = (
            to_uint8(m.sample(labels, seed=batch_seed(seed, label), settings=settings).images).cpu()
            for m in (teacher, model)
        )
        rows.append(
            ClassPictures(
                name=CLASS_NAMES[label] if known else f"class {label}",
                teacher=left,
                student=right,
                real=real[real_labels == label][:size] if real is not None else None,
            )
        )
    return rows
