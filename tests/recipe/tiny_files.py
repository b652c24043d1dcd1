"""Tiny models and pictures as files, as a user has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from actvar_cli.model.config import Dial
from actvar_cli.model.sampling import ActVAR
from actvar_cli.weights.artefact import save
from tests.evaluate.fashion import tiny_fashion
from tests.tiny import tiny_model


def save_dense(folder: Path) -> Path:
    """A dense model of three classes, whose FFNs matter, as ``dense.safetensors``."""
    model = tiny_model()
    for block in model.transformer.blocks:
        block.ffn.fc1.weight.data.mul_(4)  # type: ignore[union-attr, operator]
        block.ffn.fc2.weight.data.mul_(8)  # type: ignore[union-attr, operator]
    return save(folder / "dense.safetensors", model, {})


def save_compressed(folder: Path) -> Path:
    """The same architecture with experts and token gates, calibrated, as ``compressed.safetensors``."""
    return save(folder / "compressed.safetensors", calibrated(tiny_model(experts=True, token_gate=True)), {})


def save_fashion(folder: Path) -> tuple[Path, Path]:
    """A tiny model that passes for var-fashion, and its compressed one; with `stand_in` their pictures are judged."""
    teacher = save(folder / "teacher.safetensors", tiny_fashion(), {})
    return teacher, save(folder / "student.safetensors", calibrated(tiny_fashion(sparse=True)), {})


def calibrated(model: ActVAR) -> ActVAR:
    """``model`` with thresholds for two budgets; what they really cost is not what they say."""
    dials = (Dial(budget=0.7, threshold=0.1, cost=0.7), Dial(budget=0.8, threshold=-0.1, cost=0.8))
    model.config = model.config.model_copy(update={"dials": dials, "default_budget": 0.7})
    return model


def save_pictures(folder: Path) -> Path:
    """Six pictures of each of three classes in ``folder``, some a folder deeper, each in a shade of its own."""
    for label, name in enumerate(("a-coat", "bag", "shoe")):
        for i in range(6):
            place = folder / name / ("more" if i > 3 else "")
            save_picture(place / f"{i}.png", np.full((6, 6), 80 * label + 10 * i, np.uint8))
    return folder


def save_picture(path: Path, pixels: np.ndarray) -> None:
    """Write ``pixels``, (H, W) or (H, W, 3), and the folders above if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
