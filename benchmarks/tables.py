"""What the tables of the pages have in common."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"


def markdown(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def plus_minus(mean: float, sd: float, digits: int) -> str:
    """A mean and its standard deviation, as the pages show them."""
    return f"{mean:.{digits}f} ± {sd:.{digits}f}"


def read(name: str) -> Any:
    """A result file."""
    return json.loads((RESULTS / name).read_text())


def machine() -> dict[str, str]:
    """What a measurement on a CPU was made on, for its result file."""
    import torch

    from actvar_cli.model.device import device_name

    return {
        "device": device_name(torch.device("cpu")),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def named(machine: Mapping[str, Any]) -> str:
    """The same, out of a result, as the pages say it; what a CPU can does not matter beside a GPU."""
    capability = f"{machine['cpu_capability']}, " if machine["device"].startswith("cpu") else ""
    return f"{machine['device']}, {capability}torch {machine['torch']}"


def spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation."""
    return plus_minus(statistics.mean(values), statistics.stdev(values), digits)
