"""The plots of the report, as SVG text: vector, without fonts or scripts, the same bytes for the same data."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DENSE, COMPRESSED, RULE, INK = "#98a2b3", "#0f766e", "#d0d5dd", "#1f2933"

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "actvar",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
}


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _figure(width: float, height: float, columns: int = 1, **grid: Any) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, **grid)[0]
    return figure, list(axes)


def _bars(axes: Axes, names: Sequence[str], series: Mapping[str, Sequence[float]], colours: Sequence[str]) -> None:
    width = 0.8 / len(series)
    for i, ((name, values), colour) in enumerate(zip(series.items(), colours, strict=False)):
        offsets = [x + (i - (len(series) - 1) / 2) * width for x in range(len(names))]
        axes.bar(offsets, values, width, label=name, color=colour)
    axes.set_xticks(range(len(names)), names)
    axes.grid(axis="y", color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)


def flops_by_scale(patch_nums: Sequence[int], dense: Sequence[float], compressed: Sequence[float] | None) -> str:
    """FLOPs per image of each scale, dense beside compressed."""
    with matplotlib.rc_context(_STYLE):
        figure, (axes,) = _figure(6.4, 2.5)
        top = max(dense)
        unit, size = next((u, s) for u, s in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0)) if top >= s)
        series = {"dense": [v / size for v in dense]}
        if compressed:
            series["compressed"] = [v / size for v in compressed]
        _bars(axes, [f"{pn}\N{MULTIPLICATION SIGN}{pn}" for pn in patch_nums], series, (DENSE, COMPRESSED))
        axes.set_xlabel("scale")
        axes.set_ylabel(f"{unit}FLOPs per image")
        axes.legend(loc="upper left")
        return _svg(figure)


def densities(patch_nums: Sequence[int], experts: Sequence[Sequence[float]], tokens: Sequence[Sequence[float]]) -> str:
    """Two heat maps, block by scale: the share of experts that is on, and of tokens that is computed."""
    with matplotlib.rc_context({**_STYLE, "axes.spines.left": False, "axes.spines.bottom": False}):
        depth = len(experts)
        figure, (left, right) = _figure(6.4, max(2.0, 0.9 + 0.2 * depth), columns=2, sharey=True)
        for axes, table, title in ((left, experts, "experts on"), (right, tokens, "tokens computed")):
            image = axes.imshow(table, vmin=0, vmax=1, cmap="GnBu", aspect="auto")
            axes.set_title(title)
            axes.set_xticks(range(len(patch_nums)), [str(pn) for pn in patch_nums])
            axes.set_xlabel("scale (patch number)")
            axes.tick_params(length=0)
            for b, row in enumerate(table if depth <= 16 else ()):
                for s, value in enumerate(row):
                    colour = "white" if value > 0.6 else INK
                    axes.text(s, b, f"{100 * value:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
        left.set_ylabel("block")
        left.set_yticks(range(0, depth, 1 if depth <= 16 else 4))
        bar = figure.colorbar(image, ax=[left, right], fraction=0.03, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
        return _svg(figure)


def by_class(names: Sequence[str], teacher: Sequence[float], student: Sequence[float]) -> str:
    """Class accuracy of teacher and student."""
    with matplotlib.rc_context(_STYLE):
        figure, (axes,) = _figure(6.4, 2.5)
        percents = {"teacher": [100 * v for v in teacher], "student": [100 * v for v in student]}
        _bars(axes, names, percents, (DENSE, COMPRESSED))
        axes.tick_params(axis="x", rotation=30)
        axes.set_ylabel("class accuracy, %")
        axes.set_ylim(max(0.0, min(min(v) for v in percents.values()) - 10), 100)
        axes.legend(loc="lower center", ncols=2, bbox_to_anchor=(0.5, 1.0))
        return _svg(figure)


def agreement_by_scale(patch_nums: Sequence[int], kl: Sequence[float], match: Sequence[float]) -> str:
    """KL divergence to the teacher, and equal first choices, scale by scale."""
    with matplotlib.rc_context(_STYLE):
        figure, (left, right) = _figure(6.4, 2.2, columns=2)
        names = [str(pn) for pn in patch_nums]
        _bars(left, names, {"KL": kl}, (COMPRESSED,))
        left.set_title("KL to the teacher, nats per token")
        _bars(right, names, {"match": [100 * v for v in match]}, (COMPRESSED,))
        right.set_title("same first choice, %")
        right.set_ylim(0, 100)
        for axes in (left, right):
            axes.set_xlabel("scale (patch number)")
        return _svg(figure)


def training(history: Sequence[Mapping[str, Any]]) -> str | None:
    """Loss and cost step by step, averaged over a fiftieth of the steps; ``None`` for a history without them.

    Entries hold ``step``, ``stage``, and any of ``loss``, ``kl``, ``cost`` and ``budget``.
    """
    panels = [keys for keys in (("loss", "kl"), ("cost", "budget")) if _curve(history, keys[0])]
    if not panels:
        return None
    titles = {"loss": "loss", "cost": "cost, share of dense FLOPs"}
    looks = {"loss": (COMPRESSED, "-"), "kl": (DENSE, "-"), "cost": (COMPRESSED, "-"), "budget": (INK, "--")}
    with matplotlib.rc_context(_STYLE):
        figure, all_axes = _figure(6.4, 2.4, columns=len(panels))
        steps = _steps(history)
        for axes, keys in zip(all_axes, panels, strict=True):
            for key in keys:
                points = _curve(history, key)
                colour, dashes = looks[key]
                values = [value for _, value in points]
                stages = [history[i].get("stage") for i, _ in points]
                smooth = values if key == "budget" else _running_mean(values, stages, max(1, len(values) // 50))
                axes.plot([steps[i] for i, _ in points], smooth, dashes, color=colour, linewidth=1.1, label=key)
            axes.set_title(titles[keys[0]])
            axes.set_xlabel("step")
            axes.grid(axis="y", color=RULE, linewidth=0.5)
            axes.legend(loc="upper right" if keys[0] == "loss" else "lower left")
            _mark_stages(axes, history, steps)
        return _svg(figure)


def _curve(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(i, float(e[key])) for i, e in enumerate(history) if isinstance(e.get(key), int | float)]


def _running_mean(values: Sequence[float], stages: Sequence[object], window: int) -> list[float]:
    """The mean of each value and those up to ``window - 1`` before it in the same stage."""
    means: list[float] = []
    start = 0
    for i in range(len(values)):
        if stages[i] != stages[start]:
            start = i
        part = values[max(start, i - window + 1) : i + 1]
        means.append(sum(part) / len(part))
    return means


def _steps(history: Sequence[Mapping[str, Any]]) -> list[float]:
    """Steps counted on over the stages, each of which may start at step 0."""
    steps: list[float] = []
    base = last = 0.0
    for number, entry in enumerate(history):
        step = float(entry.get("step", number))
        if step < last:
            base += last + 1
        last = step
        steps.append(base + step)
    return steps


def _mark_stages(axes: Axes, history: Sequence[Mapping[str, Any]], steps: Sequence[float]) -> None:
    before = None
    for entry, step in zip(history, steps, strict=True):
        stage = entry.get("stage")
        if stage != before and stage is not None:
            axes.axvline(step, color=RULE, linewidth=1)
            axes.annotate(f" {stage}", (step, 0.98), xycoords=("data", "axes fraction"), va="top", fontsize=8)
        before = stage
