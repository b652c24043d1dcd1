"""The variants of benchmarks/quality.yaml."""

from __future__ import annotations

import yaml
from quality import VARIANTS, settings_of


def test_all_variants_are_trained_alike_and_differ_as_they_say() -> None:
    variants = {k: v for k, v in yaml.safe_load(VARIANTS.read_text())["variants"].items() if "model" not in v}
    untrained = {"norm-router", "cached-tokens", "converted", "first-scales"}
    assert all(settings_of(variants[name]) for name in untrained)
    made = {name: settings_of(variant) for name, variant in variants.items() if name not in untrained}
    steps = {
        sum(stage.steps for stage in (d.stages.guidance, d.stages.experts, d.stages.tokens)) for _, d in made.values()
    }
    assert steps == {550}
    assert {(d.images, d.batch, d.lr) for _, d in made.values()} == {(2048, 32, 1.5e-3)}
    assert {d.learns for name, (_, d) in made.items() if not name.startswith("delta")} == {"blocks"}
    assert {d.learns for name, (_, d) in made.items() if name.startswith("delta")} == {"delta"}
    assert settings_of(variants["ours"], "quick")[1].stages.experts.steps == 60
    half = settings_of(variants["ours"], "half")[1]
    assert (half.stages, half.batch, half.images) == (made["ours"][1].stages, 16, 4096)
    different = {(repr(pair), *map(variants[name].get, ("thinner", "seed"))) for name, pair in made.items()}
    assert len(different) == len(made)
