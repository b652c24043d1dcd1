"""How long the decoder's 3 x 3 convolutions take on a CPU, by torch and with fewer multiplications.

    OMP_NUM_THREADS=2 python benchmarks/convolutions.py

What `CHANNELS` and `PIXELS` in model/winograd.py go by: shapes of the published tokenizer's decoder, and smaller ones.
Both ways in turn, medians; writes benchmarks/results/convolutions.json.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from actvar_cli.model.device import device_name, keep_memory
from actvar_cli.model.winograd import convolve

RESULT = Path(__file__).parent / "results/convolutions.json"
SHAPES = (
    (160, 160, 256, 1), (160, 160, 128, 1), (320, 160, 128, 1), (320, 320, 128, 1), (320, 320, 64, 1),
    (640, 320, 32, 1), (640, 320, 32, 4), (640, 640, 32, 4), (640, 640, 16, 4), (640, 640, 16, 16),
    (128, 128, 64, 1), (64, 64, 64, 4), (32, 32, 32, 64),
)  # fmt: skip
"""Channels read and written, side and number of images."""
REPEATS = 9


@torch.inference_mode()
def main() -> None:
    """Measure all shapes and write the result."""
    keep_memory(torch.device("cpu"))
    torch.manual_seed(0)
    found = []
    for channels, outputs, side, images in SHAPES:
        x = torch.randn(images, channels, side, side).to(memory_format=torch.channels_last)
        weight = (torch.randn(outputs, channels, 3, 3) / (9 * channels) ** 0.5).to(memory_format=torch.channels_last)
        bias = torch.randn(outputs)
        taken: list[list[float]] = [[], []]
        for repeat in range(REPEATS + 1):
            made = []
            for times, way in zip(taken, (lambda *a: F.conv2d(*a, padding=1), convolve), strict=True):
                began = time.perf_counter()
                made.append(way(x, weight, bias))
                if repeat:
                    times.append(time.perf_counter() - began)
        torch_ms, fewer_ms = (1e3 * statistics.median(times) for times in taken)
        away = float((made[0] - made[1]).abs().max() / made[0].abs().max())
        cell = {"channels": channels, "outputs": outputs, "side": side, "images": images}
        found.append({**cell, "torch_ms": torch_ms, "fewer_ms": fewer_ms, "largest_difference": away})
        print(found[-1], flush=True)
    result = {
        "device": device_name(torch.device("cpu")),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "repeats": REPEATS,
        "cells": found,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
