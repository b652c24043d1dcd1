"""The model card of an exported folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actvar_cli.model.config import ModelConfig


def model_card(
    config: ModelConfig, *, dtype: str, lineage: Mapping[str, Any], metrics: Mapping[str, float | str]
) -> str:
    """Markdown with the Hub's YAML header: what the model is, how to use it, what was measured, how it was made."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        license="mit",
        library_name="actvar",
        tags=["actvar", "VAR", "class-conditional", "image-generation"],
        model_name=config.name,
    )
    sections = [f"---\n{data.to_yaml()}\n---", f"# {config.name}", _what(config, dtype), _usage(config)]
    if metrics:
        rows = "\n".join(f"| {name} | {_number(value)} |" for name, value in metrics.items())
        sections.append(f"## Measured\n\n| what | value |\n|---|---|\n{rows}")
    if config.dials:
        rows = "\n".join(f"| {d.budget:g} | {d.cost:.3f} |" for d in config.dials)
        sections.append(f"## Calibrated budgets\n\n| budget | cost when calibrated |\n|---|---|\n{rows}")
    if lineage:
        sections.append(f"## How it was made\n\n{_lineage(lineage)}")
    return "\n\n".join(sections) + "\n"


def _what(config: ModelConfig, dtype: str) -> str:
    arch, tok = config.transformer, config.tokenizer
    parts = [
        f"A class-conditional VAR (next-scale prediction, arXiv 2404.02905) for {tok.image_size} px images of "
        f"{arch.num_classes} classes: depth {arch.depth}, width {arch.embed_dim}, {arch.num_heads} heads, "
        f"{len(tok.patch_nums)} scales, {tok.vocab_size} codes. Transformer stored as {dtype}."
    ]
    if config.experts:
        parts.append(f"Every FFN is split into {config.experts.num_experts} experts behind a router.")
    if config.token_gate:
        gated = ", ".join(f"{tok.patch_nums[s]}x{tok.patch_nums[s]}" for s in config.token_gate.scales)
        parts.append(f"A token gate decides which tokens of the scales {gated} are computed.")
    return " ".join(parts)


def _usage(config: ModelConfig) -> str:
    default = config.default_budget
    budget = f", budget={default:g}" if default else ""
    return (
        "```python\nimport actvar_cli\n\n"
        f'model = actvar_cli.load("path/to/this/folder"{budget})  # or "hf://owner/repo"\n'
        "images = model.sample([0, 1], seed=0).images  # (2, channels, height, width) in [0, 1]\n```"
    )


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


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
