"""What a student is trained on: samples of the teacher, or the pictures of a folder as the tokenizer sees them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from actvar_cli.convert.recording import TeacherSamples, draw_samples, room_for_logits, sampling_batch
from actvar_cli.distill.settings import LOGIT_BYTES, DistillSettings
from actvar_cli.distill.training import taught
from actvar_cli.errors import InputError
from actvar_cli.model.config import GuidanceConfig, TokenizerConfig
from actvar_cli.model.guidance import guidance_by_position
from actvar_cli.model.sampling import ActVAR, SamplingSettings, balanced_labels
from actvar_cli.progress import Progress

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Files that count as pictures, by the end of their names in lower case."""


class Pictures(NamedTuple):
    """The pictures below a folder, by subfolder, in the order of the classes; ``digest`` changes with any of them.

    It is one of their names, sizes and times of change: reading them all would take as long as training.
    """

    folder: str
    of_class: dict[str, list[Path]]
    digest: str


def find_pictures(folder: str) -> Pictures:
    """The pictures in each subfolder of ``folder``, at any depth; InputError where that cannot be read.

    Subfolders are in the order of their names, or of their numbers where all are numbers: else 10 would precede 2.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"no such folder: {folder} (data: a folder of pictures, one subfolder for each class)")
    digest, of_class = hashlib.sha256(), {}
    subfolders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if all(path.name.isdecimal() for path in subfolders):
        subfolders.sort(key=lambda path: int(path.name))
    for subfolder in subfolders:
        found: list[Path] = []
        for place, _, names in os.walk(subfolder):
            found += [Path(place, name) for name in names if name.lower().endswith(SUFFIXES)]
        of_class[subfolder.name] = sorted(found)
        for path in of_class[subfolder.name]:
            try:
                state = path.stat()
            except OSError as error:
                raise InputError(f"cannot read the picture {path}: {error.strerror}") from error
            digest.update(f"{path.relative_to(root)}:{state.st_size}:{state.st_mtime_ns}\n".encode())
    return Pictures(folder, of_class, digest.hexdigest())


def chosen_pictures(pictures: Pictures, count: int, classes: int, seed: int) -> list[Path]:
    """``count`` of the pictures, drawn at random, with the ``classes`` in turn as `balanced_labels` has them.

    Raises InputError where the folder has not as many classes, or too few pictures of one.
    """
    found = pictures.of_class
    if len(found) != classes:
        raise InputError(
            f"{pictures.folder} has {len(found)} subfolders, the model {classes} classes: "
            "data has one for each, in the order of their names"
        )
    generator, labels = torch.Generator().manual_seed(seed), balanced_labels(count, classes)
    drawn = []
    for (name, paths), wanted in zip(found.items(), labels.bincount(minlength=classes).tolist(), strict=True):
        if len(paths) < wanted:
            raise InputError(
                f"{pictures.folder} has {len(paths)} pictures in {name}, {count} images need {wanted} of each class: "
                "add some, or lower images"
            )
        order = torch.randperm(len(paths), generator=generator).tolist()
        drawn.append(iter([paths[i] for i in order]))
    return [next(drawn[label]) for label in labels.tolist()]


def read_picture(path: Path, config: TokenizerConfig) -> Tensor:
    """The picture (C, S, S) in [-1, 1] as the tokenizer takes it: its shorter side made S, its middle kept.

    Raises InputError where the file is no picture.
    """
    side = config.image_size
    try:
        with Image.open(path) as opened:
            picture = opened.convert("L" if config.in_channels == 1 else "RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read the picture {path}: mend or remove it") from error
    if picture.size != (side, side):
        picture = ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(picture)).reshape(side, side, config.in_channels)
    return pixels.permute(2, 0, 1).float().div_(127.5).sub_(1)


@torch.no_grad()
def encoded_pictures(teacher: ActVAR, folder: str, count: int, *, seed: int, progress: Progress) -> TeacherSamples:
    """``count`` pictures of ``folder`` as the ``teacher``'s tokens, with classes in turn."""
    config = teacher.config
    paths = chosen_pictures(find_pictures(folder), count, config.transformer.num_classes, seed)
    tokens, size = [], sampling_batch(teacher)
    with progress.task("encoding the pictures", count) as task:
        for start in range(0, count, size):
            images = torch.stack([read_picture(path, config.tokenizer) for path in paths[start : start + size]])
            tokens.append(torch.cat(teacher.tokenizer.encode(images.to(teacher.device)), dim=1))
            task.advance(len(images))
    return TeacherSamples(balanced_labels(count, config.transformer.num_classes).to(teacher.device), torch.cat(tokens))


def with_logits(samples: TeacherSamples, teacher: ActVAR, guidance: Tensor) -> TeacherSamples:
    """``samples`` with what the ``teacher`` says of them after ``guidance``, in half precision."""
    logits = room_for_logits(teacher, len(samples))
    for part in torch.arange(len(samples)).split(sampling_batch(teacher)):
        logits[part] = taught(teacher, samples[part], guidance).half()
    return TeacherSamples(samples.labels, samples.tokens, logits)


def logit_room(device: torch.device) -> int:
    """Bytes that the teacher's logits may take on ``device``: of a GPU, an eighth of its memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // 8
    return LOGIT_BYTES


def training_samples(
    teacher: ActVAR, settings: DistillSettings, learned: GuidanceConfig | None, seed: int, progress: Progress
) -> TeacherSamples:
    """What a student that has ``learned`` guidance, or has not, is trained on; InputError where ``data`` is unfit."""
    # What the teacher says need not be computed again in every step. Without guidance learned, it is: the hidden
    # states that its rows are compared by come with it.
    kept = learned is not None and settings.kept_logits(teacher.config, logit_room(teacher.device)) > 0
    seed += 1_000_000
    if settings.data is not None:
        samples = encoded_pictures(teacher, settings.data, settings.images, seed=seed, progress=progress)
        if not (learned and kept):
            return samples
        return with_logits(samples, teacher, guidance_by_position(teacher.config, learned.cfg, teacher.device))
    return draw_samples(
        teacher,
        settings.images,
        seed=seed,
        progress=progress,
        settings=SamplingSettings(cfg=learned.cfg) if learned else None,
        keep_logits=kept,
    )
