"""How long the decoder's 3 x 3 convolutions take on a CPU, by torch and with fewer multiplications.

    OMP_NUM_THREADS=2 python benchmarks/convolutions.py

What `CHANNELS` and `PIXELS` in model/winograd.py go by: shapes of the published tokenizer's decoder, and smaller ones.
Both ways in turn, medians; writes benchmarks/results/convolutions.json.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from tables import machine
from torch import Tensor

from actvar_cli.model.device import keep_memory
from actvar_cli.model.winograd import convolve
from actvar_cli.profile.timing import in_turn
from actvar_cli.progress import Progress

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
        ways: dict[str, Callable[[object], Tensor]] = {
            "torch": lambda _, given=(x, weight, bias): F.conv2d(*given, padding=1),
            "fewer": lambda _, given=(x, weight, bias): convolve(*given),
        }
        measured = in_turn(ways, repeats=REPEATS, device=x.device, progress=Progress())
        expected, made = (way(0) for way in ways.values())
        found.append(
            {
                "channels": channels,
                "outputs": outputs,
                "side": side,
                "images": images,
                **{f"{name}_ms": 1e3 * statistics.median(of.seconds) for name, of in measured.items()},
                "largest_difference": float((expected - made).abs().max() / expected.abs().max()),
            }
        )
        print(found[-1], flush=True)
    result = {
        **machine(),
        "repeats": REPEATS,
        "cells": found,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
