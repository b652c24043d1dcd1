"""The report of a run: one HTML file with figures, plots and pictures in it, that needs no network.

    write_report("report.html", ReportData(title="var-fashion", profile=..., evaluation=..., history=..., ...))

Whatever is not given is left out, with what depends on it.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from actvar_cli import __version__
from actvar_cli.errors import InputError
from actvar_cli.evaluate.evaluate import Evaluation, Quality
from actvar_cli.evaluate.images import make_grid
from actvar_cli.evaluate.pairs import ClassPictures
from actvar_cli.profile import plots
from actvar_cli.profile.page import Numbering, page, pairs_table, png_image, svg_image
from actvar_cli.profile.profile import Profile
from actvar_cli.profile.units import duration, percent, quantity
from actvar_cli.weights.files import new_file


@dataclass(frozen=True)
class ReportData:
    """Everything a report can show.

    ``history`` is distillation's, one entry per step; ``pictures`` are from `evaluate.pairs.sample_pairs`; ``recipe``
    is the YAML as the user wrote it, ``command`` what makes the same again; ``lineage`` the artefact's;
    ``facts`` further lines such as seeds and durations, name to value.
    """

    title: str
    profile: Profile | None = None
    evaluation: Evaluation | None = None
    history: Sequence[Mapping[str, Any]] = ()
    pictures: Sequence[ClassPictures] = ()
    recipe: str | None = None
    command: str | None = None
    lineage: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)


def write_report(path: str | Path, data: ReportData, *, force: bool = False) -> Path:
    """Write the report to ``path``, whole or not at all.

    Raises InputError where ``path`` exists and ``force`` is off, or there is neither a profile nor an evaluation.
    """
    if data.profile is None and data.evaluation is None:
        raise InputError("a report needs a profile or an evaluation, and there is neither")
    with new_file(path, force=force) as temporary:
        temporary.write_text(render(data), encoding="utf-8")
    return Path(path)


def render(data: ReportData) -> str:
    """The report as HTML."""
    number = Numbering()
    sections = [
        f"<h1>{escape(data.title)}</h1>",
        f'<p class="meta">actvar {escape(__version__)}{_measured_on(data)}</p>',
        f'<p class="abstract">{escape(_abstract(data))}</p>',
        _headline(number, data),
        _pictures(number, data),
        _work(number, data.profile),
        _quality(number, data.evaluation),
        _distillation(number, data.history),
        _making(data),
    ]
    return page(data.title, "\n".join(s for s in sections if s))


def _measured_on(data: ReportData) -> str:
    source = data.profile or data.evaluation
    return f" · measured on {escape(source.device)}" if source else ""


def _abstract(data: ReportData) -> str:
    said: list[str] = []
    p, e = data.profile, data.evaluation
    if p and p.cost and p.image_cost and p.speedup:
        faster = f"{p.speedup:.2f} times as fast" if p.speedup >= 1 else f"slower, at {p.speedup:.2f} of the speed"
        said.append(
            f"The compressed transformer does {percent(p.cost)} of the dense one's FLOPs "
            f"({percent(p.image_cost)} with the tokenizer's decoding), and sampling is {faster}."
        )
    elif e:
        said.append(f"The student does {percent(e.student.cost)} of the dense transformer's FLOPs.")
    if p and e and (cost := e.cost_beside(p.setting)):
        said.append(f"Quality was measured at another budget, where it does {percent(cost)}.")
    if e and e.student.distance is not None and e.teacher.distance is not None and e.floor is not None:
        said.append(
            f"Over {e.images:,} images under the same seeds, its Fréchet distance to real images is "
            f"{e.student.distance:.3f}, the teacher's {e.teacher.distance:.3f} (real against real: {e.floor:.3f}), "
            f"and its class accuracy {percent(e.student.accuracy or 0)} against {percent(e.teacher.accuracy or 0)}."
        )
    if e:
        said.append(
            f"Given the same tokens, it makes the teacher's first choice for {percent(e.agreement.token_match)} of "
            f"them, at a KL divergence of {e.agreement.kl:.3f} nats per token."
        )
    if p and not p.compressed:
        said.append(f"{p.model} ran dense: {quantity(p.dense.transformer_flops, 'FLOPs')} per image.")
    return " ".join(said)


Row = tuple[str, str, str, str]


def _headline(number: Numbering, data: ReportData) -> str:
    rows: list[Row] = []
    if data.profile:
        rows += _cost_rows(data.profile)
    if data.evaluation:
        rows += _quality_rows(data.evaluation)
        if data.profile and (cost := data.evaluation.cost_beside(data.profile.setting)):
            rows.append((data.evaluation.COST_BESIDE, "", percent(cost), ""))
    return number.table(
        ("", "dense", "compressed", "ratio"),
        rows,
        "Cost, time and quality. Dense is the model with everything computed; in quality, the teacher.",
    )


def _cost_rows(p: Profile) -> list[Row]:
    c = p.compressed

    def row(what: str, dense: float, compressed: float | None, show: Any) -> Row:
        ratio = f"{compressed / dense:.3f}" if compressed and dense else ""
        return what, show(dense), show(compressed) if compressed is not None else "", ratio

    def of(name: str) -> tuple[float, float | None]:
        return getattr(p.dense, name), getattr(c, name) if c else None

    rows = [
        row("FLOPs per image, transformer", *of("transformer_flops"), quantity),
        row("FLOPs per image, with tokenizer decoding", *of("image_flops"), quantity),
        row("time per image", *of("seconds_per_image"), duration),
        row("images per second", *of("images_per_second"), quantity),
    ]
    if p.dense.peak_memory_bytes:
        rows.append(row("peak memory", *of("peak_memory_bytes"), lambda v: quantity(v, "B")))
    if p.efficiency and p.speedup and p.promised_speedup:
        rows.append(("efficiency: measured / promised speed-up", "", f"{p.efficiency:.2f}", ""))
    return rows


def _quality_rows(e: Evaluation) -> list[Row]:
    rows: list[Row] = []
    t, s = e.teacher, e.student
    if t.distance is not None and s.distance is not None and e.floor is not None:
        ratio = f"{e.distance_ratio:.3f}" if e.distance_ratio else ""
        rows.append((f"Fréchet distance ({e.feature_network})", f"{t.distance:.4f}", f"{s.distance:.4f}", ratio))
        rows.append(("  floor: real against real", f"{e.floor:.4f}", "", ""))
    if t.accuracy is not None and s.accuracy is not None:
        points = f"{100 * (s.accuracy - t.accuracy):+.2f} points"
        rows.append(("class accuracy", percent(t.accuracy), percent(s.accuracy), points))
    rows.append(("KL to the teacher, nats per token", "", f"{e.agreement.kl:.4f}", ""))
    rows.append(("token match, given the teacher's tokens", "", percent(e.agreement.token_match), ""))
    return rows


def _pictures(number: Numbering, data: ReportData) -> str:
    if not data.pictures:
        return ""
    real = any(row.real is not None for row in data.pictures)
    head = "".join(f"<th>{t}</th>" for t in ("", "teacher", "student", *(["real"] if real else [])))
    rows = ""
    for row in data.pictures:
        shown = {"teacher": row.teacher, "student": row.student, "real": row.real}
        cells = "".join(
            f"<td>{png_image(make_grid(images, columns=len(images), gap=1), f'{row.name}, {who}')}</td>"
            for who, images in shown.items()
            if images is not None and len(images)
        )
        rows += f"<tr><td>{escape(row.name)}</td>{cells}</tr>"
    return "<h2>Pictures</h2>" + number.figure(
        f'<table class="pictures"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>',
        "Samples of teacher and student under the same seeds: the n-th of one belongs to the n-th of the other. "
        "Not selected." + (" Real images for comparison." if real else ""),
    )


def _work(number: Numbering, p: Profile | None) -> str:
    if p is None:
        return ""
    c = p.compressed
    parts = ["<h2>Where the work goes</h2>", f'<p class="note">{escape(p.scope)}.</p>']
    svg = plots.flops_by_scale(p.patch_nums, p.dense.scales, c.scales if c else None)
    parts.append(number.figure(svg_image(svg, "FLOPs by scale"), "FLOPs of the transformer by scale."))
    header = ("", "parameters", "dense", *(["compressed", "ratio"] if c else []))
    modes = [p.dense, c] if c else [p.dense]
    rows = [
        _part_row(f"  {part.replace('_', ' ')}", p.parameters[part], [m.parts[part] for m in modes])
        for part in p.dense.parts
        if p.parameters[part]
    ]
    rows.append(_part_row("transformer", p.parameters["total"], [m.transformer_flops for m in modes]))
    rows.append(_part_row("tokenizer decoding", p.tokenizer_parameters, [m.tokenizer_flops for m in modes]))
    fvcore = " and ".join(f"{100 * m.difference:+.3f} %" for m in modes)
    by_torch = " and ".join(f"{100 * m.difference_torch:+.3f} %" for m in modes)
    parts.append(
        number.table(
            header,
            rows,
            f"Parameters and FLOPs per image by part, counted on {p.batch} images. fvcore's count of the same sampling "
            f"differs from the model's own by {fvcore}, that of torch's flop_counter by {by_torch}. "
            "The tokenizer's parameters include its encoder.",
        )
    )
    if c:
        svg = plots.densities(p.patch_nums, c.expert_density, c.token_density)
        parts.append(
            number.figure(
                svg_image(svg, "densities by block and scale"),
                "Percentage of experts that are on (for tokens that are computed), and of tokens that are computed.",
            )
        )
    return "".join(parts)


def _part_row(what: str, parameters: int, flops: Sequence[float]) -> tuple[str, ...]:
    ratio = [f"{flops[1] / flops[0]:.3f}" if flops[0] else ""] if len(flops) > 1 else []
    return (what, quantity(parameters), *map(quantity, flops), *ratio)


def _quality(number: Numbering, e: Evaluation | None) -> str:
    if e is None:
        return ""
    a = e.agreement
    parts = ["<h2>Quality</h2>"]
    parts += [f'<p class="note">{escape(note[0].upper() + note[1:])}.</p>' for note in e.notes]
    if e.teacher.accuracy_by_class and e.student.accuracy_by_class:
        names = list(e.teacher.accuracy_by_class)
        svg = plots.by_class(names, *([_accuracies(q)[n] for n in names] for q in (e.teacher, e.student)))
        parts.append(
            number.figure(
                svg_image(svg, "accuracy by class"), "Class accuracy, as the feature network's classifier sees it."
            )
        )
    # An older evaluation does not say.
    scales = a.patch_nums or range(1, len(a.kl_by_scale) + 1)
    svg = plots.agreement_by_scale(scales, a.kl_by_scale, a.token_match_by_scale)
    parts.append(
        number.figure(
            svg_image(svg, "agreement by scale"),
            f"Agreement with the teacher, scale by scale, on {a.images:,} images that the teacher sampled.",
        )
    )
    parts.append(
        f"<p>Sampling freely under the same seeds, {percent(a.sampled_token_match)} of all tokens came out equal, and "
        f"pixels differ by {a.pixel_difference:.3f} on average (of 1). "
        f"Settings: {e.images:,} images, seed {e.seed}, batches of {e.batch}, cfg {e.cfg:g}, "
        f"top-k {e.top_k or 'off'}, top-p {e.top_p or 'off'}.</p>"
    )
    return "".join(parts)


def _accuracies(quality: Quality) -> dict[str, float]:
    return quality.accuracy_by_class or {}


def _distillation(number: Numbering, history: Sequence[Mapping[str, Any]]) -> str:
    svg = plots.training(history)
    if svg is None:
        return ""
    caption = "Distillation: running means over a fiftieth of the steps; a vertical line starts each stage."
    return "<h2>Distillation</h2>" + number.figure(svg_image(svg, "training curves"), caption)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"actvar": __version__, "python": platform.python_version()}
    for package in ("torch", "fvcore", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _making(data: ReportData) -> str:
    parts = ["<h2>How to make the same again</h2>"]
    if data.command:
        parts.append(f"<pre>{escape(data.command)}</pre>")
    if data.recipe:
        parts.append(f"<p>The recipe:</p><pre>{escape(data.recipe.strip())}</pre>")
    rows = [(name, str(value)) for name, value in data.facts.items()]
    rows.append(("versions", ", ".join(f"{name} {number}" for name, number in versions().items())))
    p = data.profile
    if p:
        spread = [
            f"{duration(m.seconds_fastest)} to {duration(m.seconds_slowest)}" for m in (p.dense, p.compressed) if m
        ]
        rows.append(
            (
                "time",
                f"median of {p.repeats}, dense and compressed in turn, batches of {p.batch}, {p.types}; "
                f"per image from {'; '.join(spread)}",
            )
        )
    parts.append(pairs_table(rows))
    if data.lineage:
        lineage = json.dumps(data.lineage, indent=2, ensure_ascii=False, default=str)
        parts.append(f"<p>The artefact's lineage:</p><pre>{escape(lineage)}</pre>")
    return "".join(parts)
