"""The model card of an exported folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actvar_cli.model.config import ModelConfig

GENERATED = ("generated", "images sampled from this model")
"""The data set of a metric that needs no real images: its identifier and its name."""


@dataclass(frozen=True)
class Metric:
    """One measured figure of a model.

    ``kind`` is the Hub's identifier of the metric where there is one (``accuracy``); ``name`` says what was measured,
    in which unit and by which network; ``shown`` and ``dense`` are the figure of this model and that of the dense one
    as a reader wants them.
    """

    kind: str
    name: str
    value: float
    shown: str
    dense: str = ""
    dataset: tuple[str, str] = GENERATED


@dataclass(frozen=True)
class About:
    """What a model card tells that the model itself does not know.

    ``repo`` is the repository it will be in, ``base_model`` the one that it was made from, both as ``owner/repo``;
    ``license`` the identifier of the base model's, if it is known.
    """

    lineage: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Metric] = ()
    base_model: str | None = None
    license: str | None = None
    repo: str | None = None


def model_card(config: ModelConfig, *, dtype: str, about: About) -> str:
    """Markdown with the Hub's YAML header: what the model is, how to use it, what was measured, how it was made."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            # The Hub has no task of its own for images of a class.
            task_type="unconditional-image-generation",
            task_name="class-conditional image generation",
            dataset_type=metric.dataset[0],
            dataset_name=metric.dataset[1],
            metric_type=metric.kind,
            metric_name=metric.name,
            metric_value=float(f"{metric.value:.6g}"),
        )
        for metric in about.metrics
    ]
    data = ModelCardData(
        base_model=about.base_model,
        license=about.license,
        library_name="actvar",
        pipeline_tag="unconditional-image-generation",
        tags=["actvar", "VAR", "class-conditional", "image-generation"],
        model_name=config.name,
        eval_results=results or None,
    )
    sections = [f"---\n{data.to_yaml()}\n---", f"# {config.name}", _what(config, dtype), _usage(config, about.repo)]
    if about.metrics:
        rows = "\n".join(f"| {m.name} | {m.dense} | {m.shown} |" for m in about.metrics)
        sections.append(f"## Measured\n\n| what | dense | this model |\n|---|---|---|\n{rows}")
    if config.dials:
        rows = "\n".join(f"| {d.budget:g} | {d.cost:.3f} |" for d in config.dials)
        sections.append(f"## Calibrated budgets\n\n| budget | cost when calibrated |\n|---|---|\n{rows}")
    if about.lineage:
        sections.append(f"## How it was made\n\n{_lineage(about.lineage)}")
    return "\n\n".join(sections) + "\n"


def _what(config: ModelConfig, dtype: str) -> str:
    arch, tok = config.transformer, config.tokenizer
    parts = [
        f"A class-conditional VAR (next-scale prediction, arXiv 2404.02905) for {tok.image_size} px images of "
        f"{arch.num_classes} classes: depth {arch.depth}, width {arch.embed_dim}, {arch.num_heads} heads, "
        f"{len(tok.patch_nums)} scales, {tok.vocab_size} codes. Transformer stored as {dtype}."
    ]
    if config.experts:
        parts.append(f"Every FFN is split into {config.experts} behind a router.")
    if config.token_gate:
        gated = ", ".join(f"{tok.patch_nums[s]}x{tok.patch_nums[s]}" for s in config.token_gate.scales)
        done = "attend" if config.token_gate.skips == "attention" else "are computed"
        parts.append(f"A token gate decides which tokens of the scales {gated} {done}.")
    if config.guidance:
        parts.append(
            f"It has learned what classifier-free guidance (around cfg {config.guidance.cfg:g}) does, and computes one "
            "row for each image in place of two."
        )
    if any(dial.paired_scales for dial in config.dials):
        one_row = max(dial.budget for dial in config.dials if not dial.paired_scales)
        guided = config.guidance is not None and config.guidance.context
        parts.append(
            f"Above a budget of {one_row:g} the first scales are computed as the original does, in both rows, so their "
            f"tokens are the original's{', and what both rows know is read by one' if guided else ''}."
        )
    if config.delta:
        parts.append("At budget 1 it is the original; its weights move away from the original's as the budget falls.")
    return " ".join(parts)


def _usage(config: ModelConfig, repo: str | None) -> str:
    default = config.default_budget
    budget = f", budget={default:g}" if default else ""
    name = f"hf://{repo}" if repo else "path/to/this/folder"
    return (
        "```python\nimport actvar_cli\n\n"
        f'model = actvar_cli.load("{name}"{budget})\n'
        "images = model.sample([0, 1], seed=0).images  # (2, channels, height, width) in [0, 1]\n```"
    )


def _lineage(lineage: Mapping[str, Any]) -> str:
    """A list of what is known, and the ``steps`` numbered, each with its settings."""
    facts = [f"- {key}: {value}" for key, value in lineage.items() if key != "steps"]
    steps = [f"{number}. {_step(step)}" for number, step in enumerate(lineage.get("steps", ()), start=1)]
    return "\n".join([*facts, *([""] if facts and steps else []), *steps])


def _step(step: Any) -> str:
    if not isinstance(step, Mapping):
        return str(step)
    return f"{step.get('step', '')}: {', '.join(f'{key} {value}' for key, value in _flat(step) if key != 'step')}"


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Nested keys joined by points, as in ``stages.experts.steps``."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else [(before + key, value)]
    return found
