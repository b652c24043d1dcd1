"""What benchmarks/speed.py times."""

from __future__ import annotations

import pytest
import torch
from routes import decide
from speed import KINDS, random_model

from actvar_cli.model.counters import WorkCounter


@pytest.mark.parametrize(("kind", "cost"), [("experts", 0.6), ("token gates", 0.6), ("one row, experts", 0.4)])
def test_what_is_timed_costs_what_was_asked_for(kind: str, cost: float) -> None:
    dense, (sparse, drawn) = random_model("var-fashion", torch.device("cpu")), KINDS[kind]
    model, scores = sparse(dense), drawn(dense.config, 8, 0, torch.device("cpu"))
    decide(model, [scores], 4, cost)
    counter = WorkCounter(model.config)
    model.sample_tokens([0, 1, 2, 3], seed=0, counter=counter)
    assert counter.cost == pytest.approx(cost, abs=0.005)
