"""What was aimed at, and what of it was reached, for update_docs.py: by the digits that the tables show."""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

from quality_tables import ratios_to, sampled
from tables import markdown, read


class Aim(NamedTuple):
    """What a budget may cost: distance as a multiple of the dense model's, class accuracy in points below its."""

    distance: float
    points: float


EQUAL = None
"""Within two standard errors of the difference under the same seed."""

QUALITY: dict[float, Aim | None] = {
    0.788: EQUAL,
    0.6: Aim(1.01, 0.5),
    0.5: Aim(1.03, 0.5),
    0.4: Aim(1.08, 1),
    0.3: Aim(1.25, 2),
}
"""By budget."""

ONE_ROW = "one row, experts"
FLOAT32, BFLOAT16 = {0.79: 0.97, 0.6: 0.95}, {0.79: 0.93, 0.6: 0.90}

EFFICIENCY = (
    ("CPU, d16, float32, batch 4", "speed.json", "d16, float32, 4", ONE_ROW, FLOAT32),
    ("CPU, d16, float32, batch 8", "speed.json", "d16, float32, 8", ONE_ROW, FLOAT32),
    ("CPU, d16, bfloat16, batch 4", "speed.json", "d16, bfloat16, 4", ONE_ROW, BFLOAT16),
    ("CPU, d16, bfloat16, batch 8", "speed.json", "d16, bfloat16, 8", ONE_ROW, BFLOAT16),
    ("the same with AMX, batch 4", "speed_amx.json", "d16, bfloat16, 4", ONE_ROW, BFLOAT16),
    ("the same with AMX, batch 8", "speed_amx.json", "d16, bfloat16, 8", ONE_ROW, BFLOAT16),
    ("CPU, `var-fashion`, batch 64", "speed.json", "var-fashion, float32, 64", ONE_ROW, {0.79: 0.85}),
    ("GPU, d16, bfloat16, batch 8, both rows", "speed_cuda.json", "d16, bfloat16, 8", "experts", {0.79: 0.85}),
)
"""Where, in which result, what was left out, and the efficiency aimed at by cost."""

DENSE = (
    ("CPU, d16, float32", "dense_speed_avx512.json", "float32", 1.15),
    ("CPU, d16, bfloat16", "dense_speed_avx512.json", "bfloat16", 1.4),
    ("the same with AMX", "dense_speed.json", "bfloat16", 1.4),
    ("GPU, d16, bfloat16", "dense_speed_cuda.json", "bfloat16", 1.3),
    ("GPU, d30, bfloat16", "dense_speed_cuda_d30.json", "bfloat16", 1.3),
)
"""Where, in which result, in which type, and how many times as fast as the published code it was to be."""


def yes(reached: bool) -> str:
    """How a table says it."""
    return "yes" if reached else "**no**"


def quality() -> str:
    """Distance and class accuracy of the shipped student beside what was aimed at."""
    r = read("shipped.json")
    cells = {cell["budget"]: cell["runs"] for cell in r["variants"]["shipped"]["cells"]}
    rows = [_beside(budget, aim, cells[budget], r["teacher"]["runs"]) for budget, aim in QUALITY.items()]
    note = f"Measured beside the dense model under the same seeds, with two standard errors of that; {sampled(r)}."
    header = (
        "budget",
        "distance by dense: aim",
        "measured",
        "reached",
        "class accuracy, points: aim",
        "measured",
        "reached",
    )
    return markdown(header, rows) + "\n\n" + note


def _beside(
    budget: float, aim: Aim | None, runs: list[dict[str, float]], teacher: list[dict[str, float]]
) -> tuple[str, ...]:
    """A row of the table: what a student's ``runs`` reached beside the ``teacher``'s."""
    ratios = ratios_to(runs, teacher)
    points = [100 * (ours["accuracy"] - theirs["accuracy"]) for ours, theirs in zip(runs, teacher, strict=True)]
    ratio, point = statistics.mean(ratios), statistics.mean(points)
    if aim is EQUAL:
        asked = ("equal", "equal")
        reached = (abs(ratio - 1) <= _errors(ratios), abs(point) <= _errors(points))
    else:
        asked = (f"at most {aim.distance:.2f}", f"at least -{aim.points:g}")
        reached = (round(ratio, 2) <= aim.distance, round(point, 2) >= -aim.points)
    return (
        f"{budget:g}",
        asked[0],
        f"{ratio:.3f} ± {_errors(ratios):.3f}",
        yes(reached[0]),
        asked[1],
        f"{point:+.2f} ± {_errors(points):.2f}",
        yes(reached[1]),
    )


def _errors(values: list[float]) -> float:
    """Two standard errors of their mean."""
    return 2 * statistics.stdev(values) / math.sqrt(len(values))


def efficiency() -> str:
    """Measured speed-up by the one that the FLOPs promise, beside what was aimed at."""
    rows = []
    for where, file, key, kind, aims in EFFICIENCY:
        cells = {cell["asked"]: cell for cell in read(file)[key]["cells"] if cell["kind"] == kind}
        for asked, aim in aims.items():
            cell = cells[asked]
            found = round(cell["efficiency"], 2)
            rows.append((where, f"{asked:g}", f"{cell['cost']:.2f}", f"{aim:.2f}", f"{found:.2f}", yes(found >= aim)))
    return markdown(("where", "budget", "cost", "efficiency: aim", "measured", "reached"), rows)


def dense() -> str:
    """How many times as fast as the published code, image and all, beside what was aimed at."""
    rows = []
    for where, file, dtype, aim in DENSE:
        for run in read(file)["runs"]:
            if run["dtype"] == dtype:
                found = round(run["image"]["speedup"], 2)
                rows.append((where, str(run["batch"]), f"{aim:.2f}", f"{found:.2f}", yes(found >= aim)))
    return markdown(("where", "batch", "times as fast: aim", "measured", "reached"), rows)
