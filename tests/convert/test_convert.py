"""Converting a dense model."""

from __future__ import annotations

import pytest
import torch

from actvar_cli.convert import convert as module
from actvar_cli.convert.calibration import measured_cost
from actvar_cli.convert.convert import Converted, convert, router_dim
from actvar_cli.convert.recording import draw_samples
from actvar_cli.convert.settings import ConvertSettings
from actvar_cli.errors import ActvarError, InputError
from actvar_cli.model.config import RouterKind
from actvar_cli.model.counters import WorkCounter
from actvar_cli.model.router import Router
from actvar_cli.model.sampling import paired_rows
from actvar_cli.progress import Progress
from tests.tiny import tiny_model

SETTINGS = ConvertSettings(experts=4, images=16)


@pytest.fixture(scope="module")
def converted() -> Converted:
    return convert(tiny_model(), SETTINGS, seed=0)


def test_all_experts_on_is_the_original(converted: Converted) -> None:
    teacher = tiny_model()
    assert converted.max_logit_difference < 1e-4
    converted.model.threshold = -torch.inf
    torch.testing.assert_close(
        converted.model.sample([0, 1, 2], seed=3).images, teacher.sample([0, 1, 2], seed=3).images, atol=1e-4, rtol=0
    )


def test_neurons_are_permuted_and_can_be_put_back(converted: Converted) -> None:
    for old, new in zip(tiny_model().transformer.blocks, converted.model.transformer.blocks, strict=True):
        back = new.ffn.permutation.argsort()
        assert torch.equal(new.ffn.fc1.weight[back], old.ffn.fc1.weight)
        assert torch.equal(new.ffn.fc1.bias[back], old.ffn.fc1.bias)
        assert torch.equal(new.ffn.fc2.weight[:, back], old.ffn.fc2.weight)


def test_early_scales_get_more_of_the_work(converted: Converted) -> None:
    offsets = converted.model.config.scale_offsets
    assert list(offsets) == sorted(offsets, reverse=True)
    assert offsets[0] > 1
    assert offsets[-1] == 0


def test_every_budget_costs_what_it_says(converted: Converted) -> None:
    assert len(converted.model.config.dials) >= 5
    for dial in converted.model.config.dials:
        assert dial.cost == pytest.approx(dial.budget, abs=0.02)
        cost = measured_cost(converted.model, dial.threshold, images=48, seed=77)
        assert cost == pytest.approx(dial.budget, abs=0.04)


# The first is that of `var-fashion`.
@pytest.mark.parametrize("depth", [3, 16, 20, 24, 30, 36])
def test_routers_do_less_than_a_hundredth_of_the_work_of_an_ffn(depth: int) -> None:
    dim, experts = 64 * depth, ConvertSettings().experts
    assert isinstance(experts, int)
    assert router_dim(dim) * (dim + experts) < 0.01 * 2 * dim * 4 * dim


@torch.no_grad()
def test_routers_choose_better_than_chance(converted: Converted) -> None:
    teacher, model = tiny_model(), converted.model
    samples = draw_samples(teacher, 32, seed=9, progress=Progress())
    rows, var_input = paired_rows(teacher, samples.labels, samples.tokens)
    target = teacher.transformer(rows, var_input)

    def error(threshold: float) -> tuple[float, float]:
        context = model.transformer.teacher_forced(threshold)
        logits = model.transformer(rows, var_input, context)
        density = torch.stack([made.on.mean() for made in context.decisions]).mean()
        return float((logits - target).square().mean()), float(density)

    threshold = next(d.threshold for d in model.config.dials if d.budget == 0.7)
    routed, density = error(threshold)
    blind = convert(teacher, SETTINGS, seed=0).model
    for block in blind.transformer.blocks:
        block.router = Router(32, 8, 4)
        torch.nn.init.normal_(block.router.fc1.weight, std=1)
        torch.nn.init.normal_(block.router.fc2.weight, std=1)
    model = blind
    scores = [error(t) for t in (-1.0, -0.5, 0.0, 0.5)]
    at_random, other = min(scores, key=lambda pair: abs(pair[1] - density))
    assert other >= density - 0.1
    assert routed < at_random


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match=r"5 experts do not divide the FFN's 128 neurons; possible are 2, 4, 8, 16"):
        convert(tiny_model(), ConvertSettings(experts=5))
    with pytest.raises(InputError, match="tiny has experts already; convert the original model"):
        convert(tiny_model(experts=True), SETTINGS)


def test_blocks_may_have_different_numbers_of_experts() -> None:
    made = convert(tiny_model(), ConvertSettings(experts=(2, 8), images=16))
    assert [block.ffn.num_experts for block in made.model.transformer.stack] == [2, 8]
    assert made.max_logit_difference < 1e-4
    assert all(abs(dial.cost - dial.budget) < 0.005 for dial in made.model.config.dials)
    # An expert four times as large must be worth four times as much: as a whole, neither block is left out first.
    made.model.set_budget(0.8)
    counter = WorkCounter(made.model.config)
    made.model.sample(list(range(3)) * 8, seed=0, counter=counter)
    density = [sum(row) / len(row) for row in counter.density("experts")]
    assert min(density) > 0.05
    assert max(density) < 0.95
    with pytest.raises(InputError, match="3 numbers of experts were given, tiny has 2 blocks"):
        convert(tiny_model(), ConvertSettings(experts=(2, 4, 8)))


@pytest.mark.parametrize("router", ["relative", "static", "random", "none"])
def test_every_kind_of_router_leaves_the_function_as_it_was(router: RouterKind) -> None:
    made = convert(tiny_model(), ConvertSettings(experts=4, images=16, router=router))
    assert made.max_logit_difference < 1e-4
    assert bool(made.model.budgets()) == (router != "none")


def test_a_model_whose_neurons_have_changed_places_is_refused() -> None:
    teacher, settings = tiny_model(), ConvertSettings(experts=4, images=16)
    first = convert(teacher, settings).model
    before = first.sample([0, 1], seed=0).tokens
    with pytest.raises(InputError, match="tiny was converted before, and what came of it shares its weights: load it"):
        convert(teacher, settings, seed=1)
    assert torch.equal(first.sample([0, 1], seed=0).tokens, before)


def test_a_function_that_changed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    with pytest.raises(ActvarError, match=r"with all experts on, a logit differs by .*, more than -1"):
        convert(tiny_model(), ConvertSettings(experts=4, images=8))
