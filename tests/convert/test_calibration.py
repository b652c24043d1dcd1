"""Thresholds that cost what was asked for."""

from __future__ import annotations

import math
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actvar_cli.convert import calibration
from actvar_cli.convert.calibration import (
    ROUGH_IMAGES,
    SURE_IMAGES,
    CostCurve,
    calibrate_dials,
    dials_of_both_rows,
    measured_cost,
)
from actvar_cli.model.config import EVERYTHING, Dial
from actvar_cli.model.counters import WorkCounter
from actvar_cli.model.sampling import ActVAR
from actvar_cli.progress import Progress
from actvar_cli.weights.load import load
from tests.tiny import tiny_model

SPAN = (-20.0, 4.0)


def true_cost(threshold: float) -> float:
    """Falls from 0.95 to 0.2, most steeply at -5."""
    return 0.2 + 0.75 / (1 + math.exp(threshold + 5))


class Sampled:
    """`measured_cost` of a model that costs `true_cost`: few images are off by more than many."""

    def __init__(self) -> None:
        self.images: list[int] = []

    def __call__(self, model: ActVAR, threshold: float, *, images: int, seed: int) -> float:
        self.images.append(images)
        return true_cost(threshold) * (1 + 0.4 / images)


def calibrated(budgets: list[float], **asked: object) -> tuple[tuple[Dial, ...], list[int]]:
    with patch.object(calibration, "measured_cost", Sampled()) as sampled:
        dials = calibrate_dials(tiny_model(), budgets, span=SPAN, seed=0, progress=Progress(), **asked)
    return dials, sampled.images


@given(st.floats(0.25, 0.9), st.floats(0.6, 3.0))
def test_a_threshold_is_found_for_every_budget(budget: float, slope: float) -> None:
    costs = CostCurve(lambda t: true_cost(slope * t), SPAN, None)
    found = costs.find(budget, 0.01, 12)
    assert found in costs.seen
    assert costs.seen[found] == pytest.approx(budget, rel=0.01)


def test_a_budget_costs_within_half_a_percent() -> None:
    dials, images = calibrated([0.5, 0.3, 0.4, 0.97])
    assert [dial.budget for dial in dials] == [0.3, 0.4, 0.5]
    for dial in dials:
        assert dial.cost == pytest.approx(dial.budget, rel=0.005)
        assert true_cost(dial.threshold) == pytest.approx(dial.budget, rel=0.005)
    assert set(images) == {ROUGH_IMAGES, SURE_IMAGES}


def test_where_the_cost_jumps_a_dial_says_what_it_costs() -> None:
    jumps = patch.object(calibration, "measured_cost", lambda _, threshold, **__: 0.7 if threshold < -5 else 0.4)
    with jumps, patch.object(Progress, "say") as said:
        dials = calibrate_dials(tiny_model(), [0.5], span=SPAN, seed=0, progress=Progress())
    assert [(dial.budget, dial.cost) for dial in dials] == [(0.5, 0.4)]
    assert dials[0].threshold >= -5
    said.assert_called_once_with("a budget of 0.5 comes to a cost of 0.400, the nearest that can be set")


def test_with_a_guess_few_budgets_are_measured_and_the_rest_follows() -> None:
    dials, images = calibrated([0.4, 0.5, 0.6, 0.65, 0.7], guess=lambda t: 0.95 * true_cost(t - 0.2))
    assert len(dials) == 5
    assert images.count(SURE_IMAGES) == 3
    for dial in dials:
        assert true_cost(dial.threshold) == pytest.approx(dial.budget, rel=0.01)


def test_a_large_model_is_measured_on_few_images_once_each() -> None:
    dials, images = calibrated([0.4, 0.5, 0.6], guess=true_cost, images=2)
    assert images == [2, 2, 2]
    assert len(dials) == 3


def test_where_one_row_costs_a_budget_nothing_is_left_out_and_no_router_asked() -> None:
    model = tiny_model(experts=True, guidance=True)
    whole = measured_cost(model, EVERYTHING, images=1, seed=0)
    near, below = round(whole / 1.003, 4), round(whole / 1.02, 4)
    model.configure(dials=calibrate_dials(model, [near, below], span=SPAN, seed=0, progress=Progress()))
    assert [dial.budget for dial in model.config.dials] == [below, near]
    found = {}
    for budget in (below, near):
        model.set_budget(budget)
        counter = WorkCounter(model.config)
        model.sample_tokens([0, 1, 2], seed=0, counter=counter)
        found[budget] = counter
    assert found[near].cost == pytest.approx(whole)
    assert found[near].by_part()["router"] == 0 < found[below].by_part()["router"]


def test_dials_of_both_rows_are_above_the_highest_and_cost_what_they_say() -> None:
    model = tiny_model(experts=True, guidance=True, delta=True)
    highest = measured_cost(model, EVERYTHING, images=1, seed=0)
    found = dials_of_both_rows(model, highest, seed=0, progress=Progress())
    # Of three scales the first has no guidance and the last one row.
    assert [(dial.threshold, dial.paired_scales) for dial in found] == [(EVERYTHING, 2)]
    assert highest < found[0].cost < 1
    counter = WorkCounter(model.config)
    model.configure(dials=found)
    model.set_budget(found[0].budget)
    model.sample_tokens([0, 1, 2, 0, 1, 2], seed=0, counter=counter)
    assert counter.cost == pytest.approx(found[0].budget, abs=0.001)


@pytest.mark.slow
def test_the_shipped_student_costs_what_its_budgets_say() -> None:
    model = load("var-fashion-actvar")
    for dial in model.config.dials:
        cost = measured_cost(model, dial.threshold, images=SURE_IMAGES, seed=4321, paired_scales=dial.paired_scales)
        assert cost == pytest.approx(dial.budget, rel=0.005)
