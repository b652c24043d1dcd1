"""The tables and the picture of cost against quality, for update_docs.py."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from tables import markdown, plus_minus, read, spread

OURS = ("ours", "shipped")
"""The variants of benchmarks/quality.yaml that are the product itself."""

PARTS = ("shipped", "ours", "experts", "gates")
"""The variants that are the product and its parts."""

RIVALS = (
    "delta-grid-muon-kv",
    "delta-muon",
    "delta-grid-kv",
    "delta",
    "delta-static",
    "experts",
    "static-magnitude",
    "static-taylor",
    "thinner-50",
    "thinner-40",
    "thinner-30",
    "guidance-alone",
)
"""What is shown first, of the smaller trainings."""

UNTRAINED = ("shipped", "first-scales", "converted", "norm-router", "cached-tokens")
"""The student that ships beside what takes no training."""

PEERS = (
    "ours",
    "two-rows-experts",
    "two-rows-static",
    "norm-router",
    "cached-tokens",
    "relative",
    "random",
    "positions",
    "static-blocks",
    "gates",
)
"""What is shown first, of the trainings on a GPU."""


def demo_quality() -> str:
    """The demo's result at more samples and seeds, at every budget it was trained for."""
    r = read("demo_quality.json")

    def cell(value: dict[str, float], digits: int) -> str:
        if len(r["seeds"]) > 1:
            return plus_minus(value["mean"], value["sd"], digits)
        return f"{value['mean']:.{digits}f}"

    def row(name: str, found: dict[str, Any]) -> tuple[str, ...]:
        compressed = "kl" in found
        return (
            name,
            cell(found["cost"], 3),
            cell(found["distance"], 3),
            cell(found["distance_ratio"], 2) if compressed else "",
            cell(found["accuracy"], 3),
            cell(found["kl"], 3) if compressed else "",
            f"{found['speedup']:.2f}" if compressed else "1.00",
        )

    rows = [row("dense", r["dense"]), *(row(f"`--budget {b['budget']:g}`", b) for b in r["budgets"])]
    seeds = ", ".join(map(str, r["seeds"]))
    note = (
        f"{r['count']:,} samples from each model under each seed ({seeds}); mean ± standard deviation over the seeds."
    )
    header = ("", "cost", "Fréchet distance", "by dense", "class accuracy", "KL to dense", "speed-up")
    return markdown(header, rows) + "\n\n" + note


def against(runs: list[dict[str, float]], teacher: list[dict[str, float]]) -> tuple[str, str, str]:
    """Cost, distance by the ``teacher``'s under the same seeds, and class accuracy of ``runs``, as pages show them."""
    cost = statistics.mean(run["cost"] for run in runs)
    return f"{cost:.3f}", spread(ratios_to(runs, teacher), 2), spread([100 * run["accuracy"] for run in runs], 1)


def ratios_to(runs: list[dict[str, float]], teacher: list[dict[str, float]]) -> list[float]:
    """Distances by those of the ``teacher`` under the same seeds."""
    return [run["distance"] / t["distance"] for run, t in zip(runs, teacher, strict=True)]


def sampled(r: dict[str, Any]) -> str:
    """How much was sampled for the result ``r``."""
    return f"{r['count']:,} samples under each of {len(r['seeds'])} seeds"


def compared(file: str) -> str:
    """Every variant at every budget, from a result of benchmarks/quality.py: a table for each budget."""
    r = read(file)
    teacher = r["teacher"]["runs"]
    rows: dict[float, list[tuple[str, ...]]] = {}
    for name, variant in r["variants"].items():
        for cell in variant["cells"]:
            # What one row does at its most is shown above that for ours alone.
            if not _spends(cell) and name not in OURS:
                continue
            rows.setdefault(cell["budget"], []).append(
                (
                    f"`{name}`: {variant['what']}",
                    *against(cell["runs"], teacher),
                    f"{cell['kl']:.3f}",
                    f"{cell['kl_own']:.3f}",
                )
            )
    header = ("", "cost", "distance by dense", "class accuracy, %", "KL to dense", "the same on own samples")
    tables = [
        f"Budget {budget:g}:\n\n{markdown(header, found)}" for budget, found in sorted(rows.items(), reverse=True)
    ]
    note = (
        f"{sampled(r)}, mean ± standard deviation; dense: distance "
        f"{spread([t['distance'] for t in teacher], 3)}, class accuracy "
        f"{spread([100 * t['accuracy'] for t in teacher], 1)} %. {r['device']}, torch {r['torch']}."
    )
    return "\n\n".join([*tables, note])


def essence(file: str, names: tuple[str, ...]) -> str:
    """Some variants of the same result, all budgets beside each other: KL to dense, and in brackets the distance."""
    r = read(file)
    teacher = r["teacher"]["runs"]
    budgets = sorted({cell["budget"] for name in names for cell in r["variants"][name]["cells"]}, reverse=True)
    rows = []
    for name in names:
        variant = r["variants"][name]
        found = dict.fromkeys(budgets, "")
        for cell in variant["cells"]:
            if not _spends(cell):
                continue
            ratio = statistics.mean(ratios_to(cell["runs"], teacher))
            found[cell["budget"]] = f"{cell['kl']:.3f} ({ratio:.2f})"
        rows.append((f"`{name}`: {variant['what']}", *found.values()))
    note = f"{sampled(r)}; {r['device']}, torch {r['torch']}."
    return markdown(("KL to dense (distance by dense)", *(f"{budget:g}" for budget in budgets)), rows) + "\n\n" + note


def _spends(cell: dict[str, Any]) -> bool:
    """Whether what was measured spends its budget: one row cannot, above what it costs with nothing left out."""
    cost = statistics.mean(run["cost"] for run in cell["runs"])
    return bool(cost >= 0.9 * cell["budget"])


def student(file: str, *, full: bool = False) -> str:
    """The shipped student at its budgets, from a result of benchmarks/quality.py with it alone; ``full``: all of it."""
    r = read(file)
    teacher = r["teacher"]["runs"]
    cost, _, accuracy = against(teacher, teacher)
    rows = [("dense", cost, "1", accuracy, "", "", "")]
    for cell in sorted(r["variants"]["shipped"]["cells"], key=lambda cell: -cell["budget"]):
        alike = f"{100 * cell['token_match']:.0f} %", f"{cell['kl']:.3f}", f"{cell['kl_own']:.3f}"
        rows.append((f"`--budget {cell['budget']:g}`", *against(cell["runs"], teacher), *alike))
    header = ("", "cost", "Fréchet distance by dense", "class accuracy, %", "tokens as dense", "KL to dense")
    note = f"{sampled(r)}; mean ± standard deviation. Tokens as dense: under the same seed."
    if not full:
        return markdown(header, [row[:-1] for row in rows]) + "\n\n" + note
    note += f" Dense: distance {spread([t['distance'] for t in teacher], 3)}. {r['device']}, torch {r['torch']}."
    return markdown((*header, "the same on own samples"), rows) + "\n\n" + note


def reconstruction() -> str:
    """What each kind of reconstruction explains of what attention adds, by block."""
    r = read("reconstruction.json")
    note = (
        f"`{r['model']}` at a budget of {r['budget']:g}, rank {r['rank']}, {r['images']} pictures; torch {r['torch']}."
    )
    return _by_block(r["explained"]) + "\n\n" + note


def keys_and_values() -> str:
    """The same of keys and values, with the same note."""
    return _by_block(read("reconstruction.json")["keys_and_values"])


def _by_block(explained: dict[str, dict[str, list[float]]]) -> str:
    blocks = range(len(next(iter(explained.values()))["half"]))
    rows = [
        (f"`{kind}`", left_out, *(f"{100 * share:.0f}" for share in by_step[left_out]))
        for left_out in ("half", "three of four")
        for kind, by_step in explained.items()
        if kind != "identity"
    ]
    return markdown(("", "left out", *(f"block {block}" for block in blocks)), rows)


def gates() -> str:
    """What the token gates of the shipped student are worth."""
    r = read("gates.json")
    rows = [(f"{c['budget']:g}", c["gates"], f"{c['cost']:.3f}", f"{c['kl']:.3f}") for c in r["cells"]]
    note = f"`{r['model']}`, {r['images']} samples; torch {r['torch']}."
    return markdown(("budget", "gates", "cost", "KL to dense"), rows) + "\n\n" + note


def draw_rivals(picture: Path) -> None:
    """`RIVALS`, and the shipped student, which was trained for longer."""
    variants = read("quality_half.json")["variants"]
    _draw(read("shipped.json")["variants"] | {name: variants[name] for name in RIVALS}, picture)


def draw_compared(picture: Path) -> None:
    """All variants that were trained on a GPU."""
    _draw(read("quality.json")["variants"], picture)


def _draw(variants: dict[str, Any], picture: Path) -> None:
    """Cost against KL to the dense model, a line for each of ``variants``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, variant) in enumerate(variants.items()):
        points = [(statistics.mean(r["cost"] for r in c["runs"]), c["kl"]) for c in variant["cells"]]
        style = "-" if name in PARTS else "--" if number < 10 else ":"
        axes.plot(*zip(*points, strict=True), style, marker="o", markersize=4, color=f"C{number % 10}", label=name)
    axes.set(xlabel="cost, transformer FLOPs by dense", ylabel="KL to the dense model, nats per token", yscale="log")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(picture, dpi=110)
