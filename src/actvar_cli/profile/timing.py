"""Wall-clock and memory of several ways of doing the same, measured in turn in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from actvar_cli.model.device import peak_memory, synchronise, watch_peak
from actvar_cli.progress import Progress


@dataclass
class Measured:
    """``seconds`` of every repeat; ``peak_bytes`` of memory, where that can be told (`device.peak_memory`)."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None


def in_turn(
    ways: Mapping[str, Callable[[int], object]],
    *,
    repeats: int,
    device: torch.device,
    progress: Progress,
    label: str = "measuring time",
) -> dict[str, Measured]:
    """Call every way to warm up, then once per repeat with the repeat's number.

    Taking turns, in reversed order every second time, spreads whatever else the machine does evenly over the ways.
    """
    measured = {name: Measured() for name in ways}
    with progress.task(label, (repeats + 1) * len(ways)) as task:
        for name, way in ways.items():
            measured[name].peak_bytes = _peak(way, device)
            task.advance()
        if device.type == "cuda":
            # What a GPU is asked for twice in a row is recorded (`model.graphs`).
            for way in ways.values():
                way(0)
                way(0)
        for repeat in range(repeats):
            for name, way in list(ways.items())[:: -1 if repeat % 2 else 1]:
                _measure(measured[name], way, repeat, device)
                task.advance(note=f"{name} {measured[name].seconds[-1]:.2f} s")
    return measured


def _peak(way: Callable[[int], object], device: torch.device) -> int | None:
    """Call ``way``, and say what memory was in use at most, where that can be told."""
    known = watch_peak(device)
    way(0)
    return peak_memory(device) if known else None


def _measure(into: Measured, way: Callable[[int], object], repeat: int, device: torch.device) -> None:
    synchronise(device)
    started = time.perf_counter()
    way(repeat)
    synchronise(device)
    into.seconds.append(time.perf_counter() - started)
