"""Guidance: the same for one scale, as sampling needs it, and for a whole sequence, as training and evaluation do.

Computed from two rows, or learned by one.
"""

from __future__ import annotations

import math

import pytest
import torch

from actvar_cli.distill.cost import CostModel
from actvar_cli.evaluate.agreement import guided_logits
from actvar_cli.model.cache import KVCache
from actvar_cli.model.config import EVERYTHING, Dial, GuidanceConfig, ModelConfig
from actvar_cli.model.counters import WorkCounter, dense_macs
from actvar_cli.model.guidance import guidance_at, guidance_by_position, guide
from actvar_cli.model.sampling import SamplingSettings, Setting, single_rows
from actvar_cli.model.var import VAR
from actvar_cli.profile.work import count_work
from tests.tiny import tiny_model


def test_guidance_moves_away_from_what_no_class_would_give() -> None:
    conditional, unconditional = torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    got = guide(torch.cat((conditional, unconditional)), torch.tensor([[0.0], [1.5]]))
    torch.testing.assert_close(got[0, 0], conditional[0, 0])
    torch.testing.assert_close(got[0, 1], 2.5 * conditional[0, 1] - 1.5 * unconditional[0, 1])


def test_guidance_rises_from_nothing_to_its_full_strength() -> None:
    model = tiny_model()
    patch_nums = model.config.tokenizer.patch_nums
    strengths = guidance_by_position(model.config, 1.5)
    assert strengths.shape == (model.config.tokenizer.num_tokens, 1)
    assert float(strengths[0]) == 0
    assert float(strengths[-1]) == 1.5
    end = 0
    for scale, pn in enumerate(patch_nums):
        here = strengths[end : end + pn * pn]
        torch.testing.assert_close(here, torch.full_like(here, guidance_at(scale, len(patch_nums), 1.5)))
        end += pn * pn


def test_a_model_of_one_scale_is_not_guided() -> None:
    assert guidance_at(0, 1, 1.5) == 0


LABELS = torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("shared_aln", [False, True])
@pytest.mark.parametrize("cfg", [1.5, 0.7])
@torch.no_grad()
def test_one_row_is_sampled_as_training_sees_it(shared_aln: bool, cfg: float) -> None:
    model = tiny_model(experts=True, token_gate=True, shared_aln=shared_aln, guidance=True)
    model.threshold = 0.0
    tokens = model.sample_tokens(LABELS, seed=3, settings=SamplingSettings(cfg, top_k=1))
    # With the likeliest token drawn everywhere, a pass over the finished sequence must find the same ones.
    assert torch.equal(guided_logits(model, LABELS, tokens, cfg).argmax(-1), tokens)
    assert not torch.equal(model.sample_tokens(LABELS, seed=3, settings=SamplingSettings(3.0, top_k=1)), tokens)


def test_guidance_is_as_strong_as_what_was_learned_where_nobody_says() -> None:
    model = tiny_model(guidance=True)
    model.configure(guidance=GuidanceConfig(cfg=3.0))
    for threshold in (None, -math.inf):
        model.threshold = threshold
        usual, asked, other = (
            model.sample_tokens(LABELS, seed=1, settings=SamplingSettings(cfg)) for cfg in (None, 3.0, 1.5)
        )
        assert torch.equal(usual, asked)
        assert not torch.equal(usual, other)


@torch.no_grad()
def test_without_guidance_the_row_is_the_original_one() -> None:
    model, original = tiny_model(experts=True, guidance=True), tiny_model(experts=True)
    weights = model.transformer.state_dict()
    original.transformer.load_state_dict({k: v for k, v in weights.items() if not k.startswith("guidance.")})
    model.threshold, original.threshold = -math.inf, None
    for cfg, scales in ((0.0, 3), (1.5, 1)):
        settings = SamplingSettings(cfg)
        ours, theirs = (m.sample_tokens(LABELS, seed=1, settings=settings) for m in (model, original))
        length = sum(pn * pn for pn in model.config.tokenizer.patch_nums[:scales])
        assert torch.equal(ours[:, :length], theirs[:, :length])


def test_a_model_that_has_learned_guidance_is_the_original_at_budget_1() -> None:
    model, original = tiny_model(guidance=True), tiny_model()
    weights = model.transformer.state_dict()
    original.transformer.load_state_dict({k: v for k, v in weights.items() if not k.startswith("guidance.")})
    model.set_budget(1.0)
    counter = WorkCounter(model.config)
    assert torch.equal(model.sample_tokens(LABELS, seed=1, counter=counter), original.sample_tokens(LABELS, seed=1))
    assert counter.total == dense_macs(model.config, 4)


@torch.no_grad()
def test_one_row_costs_about_half_in_every_count() -> None:
    model = tiny_model(experts=True, token_gate=True, guidance=True)
    model.threshold = -math.inf
    work = count_work(model, LABELS, seed=0)
    work.check()
    assert 0.45 < work.counter.cost < 0.6
    model.threshold = 0.0
    count_work(model, LABELS, seed=0).check()
    counter = WorkCounter(model.config)
    tokens = model.sample_tokens(LABELS, seed=0, counter=counter)
    context = model.transformer.teacher_forced(0.0)
    model.transformer(*single_rows(model, LABELS, tokens), context)
    assert counter.cost == pytest.approx(float(CostModel(model.config, model.device)(context.decisions)), rel=1e-4)


@pytest.mark.parametrize("delta", [False, True])
@torch.no_grad()
def test_scales_with_both_rows_are_the_original_and_later_ones_are_not(delta: bool) -> None:
    model = tiny_model(experts=True, token_gate=True, guidance=True, delta=delta)
    sizes = [pn * pn for pn in model.config.tokenizer.patch_nums]
    settings = SamplingSettings(1.5, top_k=1)
    original = model.sample_tokens(LABELS, seed=1, settings=settings)
    for paired in (0, 1, 2):
        model.setting = Setting(0.5, paired)
        tokens = model.sample_tokens(LABELS, seed=1, settings=settings)
        end = sum(sizes[:paired])
        assert torch.equal(tokens[:, :end], original[:, :end])
        assert not torch.equal(tokens, original)
        # What is said of a finished sequence is what it was drawn from.
        assert torch.equal(guided_logits(model, LABELS, tokens, 1.5).argmax(-1), tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_guided_context_takes_the_place_of_the_rows_with_a_class(dtype: torch.dtype) -> None:
    context = tiny_model(guidance=True, context=True).transformer.guided_context
    cache = KVCache(torch.zeros(2, 2, 4, 2, 14, 16, dtype=dtype))
    cache.begin_scale(5)
    given = [torch.randn(2, 4, 2, 5, 16).to(dtype).unbind() for _ in range(2)]
    for block, (keys, values) in enumerate(given):
        cache.extend(block, keys, values)
    context.guide(cache, 0.5)
    for block, both in enumerate(given):
        for found, made, before in zip(cache.filled(block), context(block, *both, 0.5), both, strict=True):
            torch.testing.assert_close(
                found[:2].float(), made, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-2
            )
            assert torch.equal(found[2:], before[2:])


@torch.no_grad()
def test_later_scales_see_what_the_row_with_a_class_left() -> None:
    model = tiny_model(experts=True, guidance=True)
    for parameter in model.transformer.guidance.parameters():
        parameter.zero_()
    # With guidance that has learned nothing, and every expert on, the last scale is that of cfg 0.
    tokens = model.sample_tokens(LABELS, seed=1)
    unguided = guided_logits(model, LABELS, tokens, 0.0)
    model.setting = Setting(-math.inf, 2)
    last = model.config.tokenizer.patch_nums[-1] ** 2
    torch.testing.assert_close(guided_logits(model, LABELS, tokens, 1.5)[:, -last:], unguided[:, -last:])


@torch.no_grad()
def test_guided_context_puts_keys_and_values_together_as_guidance_does_logits() -> None:
    context = tiny_model(guidance=True, context=True).transformer.guided_context
    keys, values = torch.randn(2, 4, 2, 5, 16).unbind()
    for strength in (0.0, 0.5, 1.0):
        made = context(1, keys, values, strength)
        for one, both, shares in zip(made, (keys, values), (context.keys, context.values), strict=True):
            # The first scale has one token, the second four.
            a = torch.stack([shares[1, 0], *[shares[1, 1]] * 4]).unflatten(1, (2, 16)).transpose(0, 1)
            expected = both[:2] + strength * a * (both[:2] - both[2:])
            if both is keys:
                expected = torch.nn.functional.normalize(expected, dim=-1)
            torch.testing.assert_close(one, expected)


@torch.no_grad()
def test_later_scales_see_what_both_rows_left_where_that_is_learned() -> None:
    made = {context: tiny_model(experts=True, guidance=True, context=context) for context in (False, True)}
    made[True].transformer.load_state_dict(made[False].transformer.state_dict(), strict=False)
    tokens = made[False].sample_tokens(LABELS, seed=1)
    said = {}
    for context, model in made.items():
        model.setting = Setting(EVERYTHING, 2)
        said[context] = {cfg: guided_logits(model, LABELS, tokens, cfg) for cfg in (0.0, 1.5)}
    first = sum(pn * pn for pn in made[True].config.tokenizer.patch_nums[:2])
    assert torch.equal(said[True][1.5][:, :first], said[False][1.5][:, :first])
    assert not torch.allclose(said[True][1.5], said[False][1.5], atol=1e-3)
    torch.testing.assert_close(said[True][0.0], said[False][0.0])


@pytest.mark.parametrize("paired", [1, 2])
def test_both_rows_at_the_first_scales_are_in_every_count(paired: int) -> None:
    model = tiny_model(experts=True, token_gate=True, guidance=True, context=True)
    found = []
    for scales in (0, paired):
        model.setting = Setting(0.0, scales)
        work = count_work(model, LABELS, seed=0)
        work.check()
        found.append(work.counter.by_scale())
    more = [both / one for one, both in zip(*found, strict=True)]
    assert all(share > 1.5 for share in more[:paired])
    assert all(share == pytest.approx(1, abs=0.05) for share in more[paired:])


def test_both_rows_at_the_first_scales_take_the_memory_that_dense_sampling_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, rows, new_cache = tiny_model(experts=True, guidance=True), list[int](), VAR.new_cache

    def counted(var: VAR, count: int) -> KVCache:
        rows.append(count)
        return new_cache(var, count)

    monkeypatch.setattr(VAR, "new_cache", counted)
    model.setting = Setting(0.0, 2)
    model.sample_tokens(LABELS, seed=1)
    assert rows == [2 * len(LABELS)]


def test_a_dial_with_both_rows_needs_guidance_that_is_learned_and_a_scale_without() -> None:
    for guidance, paired in ((False, 1), (True, 3)):
        config = tiny_model(experts=True, guidance=guidance).config.model_dump()
        config["dials"] = [{"budget": 0.6, "threshold": 0.0, "cost": 0.6, "paired_scales": paired}]
        with pytest.raises(ValueError, match="guidance that is learned, and one scale without"):
            ModelConfig.model_validate(config)


def test_between_budgets_that_begin_differently_the_lower_one_holds() -> None:
    model = tiny_model(experts=True, guidance=True)
    rows = [(0.4, 2.0, 0), (0.5, 1.0, 0), (0.6, 2.0, 1), (0.7, 1.0, 1)]
    model.configure(dials=tuple(Dial(budget=b, threshold=t, cost=b, paired_scales=k) for b, t, k in rows))
    expected = {0.4: (2, 0), 0.45: (1.5, 0), 0.5: (1, 0), 0.55: (1, 0), 0.6: (2, 1), 0.65: (1.5, 1), 0.7: (1, 1)}
    for budget, (threshold, paired) in (expected | {0.9: (1, 1)}).items():
        model.set_budget(budget)
        assert model.setting == (pytest.approx(threshold), paired)
    model.set_budget(1.0)
    assert model.setting == (None, 0)


def test_below_a_budget_where_nothing_is_left_out_the_lower_one_holds() -> None:
    model = tiny_model(experts=True, guidance=True)
    rows = [(0.4, 2.0), (0.45, 1.0), (0.5, EVERYTHING)]
    model.configure(dials=tuple(Dial(budget=b, threshold=t, cost=b) for b, t in rows))
    for budget, threshold in {0.425: 1.5, 0.49: 1.0, 0.5: EVERYTHING, 0.6: EVERYTHING}.items():
        model.set_budget(budget)
        assert model.threshold == pytest.approx(threshold)


def test_a_budget_above_what_one_row_can_cost_is_its_most() -> None:
    model = tiny_model(experts=True, guidance=True)
    dials = (Dial(budget=0.4, threshold=2.0, cost=0.4), Dial(budget=0.45, threshold=1.0, cost=0.45))
    model.config = model.config.model_copy(update={"dials": dials})
    model.set_budget(0.8)
    assert model.threshold == 1.0
    with pytest.raises(ValueError, match=r"budget 0.3 is outside the calibrated range 0.4 to 0.45"):
        model.set_budget(0.3)
