"""Train a feature classifier: one for measuring, and another, apart from it, as the tokenizer's perceptual loss."""

from __future__ import annotations

import copy
import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from actvar_cli.evaluate.features import FeatureClassifier
from fashion.data import to_float


def augment(x: Tensor, generator: torch.Generator, noise: float) -> Tensor:
    """Mirror half of the images, shift all by up to two pixels, blank a patch, add noise: (B, 1, 32, 32) in [-1, 1].

    ``noise`` is the largest standard deviation, in units of the image range; each image gets its own, from 0 up.
    """
    mirror = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(mirror[:, None, None, None], x.flip(3), x)
    dy, dx = (int(torch.randint(-2, 3, (1,), generator=generator)) for _ in range(2))
    x = x.roll((dy, dx), (2, 3))
    top, left = (int(torch.randint(2, 24, (1,), generator=generator)) for _ in range(2))
    x = x.clone()
    some = torch.rand(len(x), generator=generator) < 0.5
    x[some, :, top : top + 6, left : left + 6] = -1
    if noise:
        deviation = 2 * noise * torch.rand(len(x), 1, 1, 1, generator=generator)
        x = (x + deviation * torch.randn(x.shape, generator=generator)).clamp(-1, 1)
    return x


@torch.no_grad()
def accuracy(model: FeatureClassifier, images: Tensor, labels: Tensor) -> float:
    """Share of ``images`` (N, 1, 32, 32) uint8 that get their label."""
    model.eval()
    hits = sum(
        int((model(to_float(x)).argmax(1) == y).sum())
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    return hits / len(labels)


def train(
    images: Tensor,
    labels: Tensor,
    *,
    epochs: float,
    seed: int,
    noise: float = 0.0,
    start: FeatureClassifier | None = None,
    peak: float = 3e-3,
    batch: int = 128,
) -> FeatureClassifier:
    """Train on (N, 1, 32, 32) uint8 with one cosine cycle, from ``start`` or from scratch; returns it in eval mode."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = (copy.deepcopy(start) if start else FeatureClassifier()).to(memory_format=torch.channels_last)
    steps = int(epochs * len(images) / batch)
    opt = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=5e-2)
    order = torch.empty(0, dtype=torch.long)
    started = time.time()
    for step in range(steps):
        warm = min(1.0, (step + 1) / (0.1 * steps))
        opt.param_groups[0]["lr"] = peak * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        if len(order) < batch:
            order = torch.randperm(len(images), generator=generator)
        index, order = order[:batch], order[batch:]
        model.train()
        x = augment(to_float(images[index]), generator, noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), labels[index], label_smoothing=0.05)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        opt.step()
        if step % 100 == 0:
            print(f"classifier {step}/{steps} loss {loss.item():.3f} {time.time() - started:.0f}s", flush=True)
    return model.to(memory_format=torch.contiguous_format).eval()
