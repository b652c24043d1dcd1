"""Weights that move with the threshold."""

from __future__ import annotations

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

import actvar_cli
from actvar_cli.evaluate.agreement import guided_logits
from actvar_cli.model.precision import set_dtype
from actvar_cli.model.sampling import ActVAR, SamplingSettings, single_rows
from actvar_cli.profile.work import count_work
from actvar_cli.weights.artefact import save
from tests.tiny import tiny_model

LABELS = torch.tensor([0, 1, 2, 0])


def model_with_delta(**parts: bool) -> ActVAR:
    """A tiny model whose weights are ``W`` where nothing is left out, and others at thresholds."""
    return tiny_model(experts=True, guidance=True, delta=True, **parts)


def without(model: ActVAR, threshold: float | None = None, share: float = 0.0) -> ActVAR:
    """A model with the same weights and no delta: what it has at threshold 0 and at 1, by ``share`` of the latter."""
    plain = tiny_model(experts=True, guidance=True)
    weights = {k: v.clone() for k, v in model.transformer.state_dict().items() if not k.startswith("delta.")}
    if threshold is not None:
        delta = dict(model.transformer.delta.named_parameters())
        for name, (at_0, at_1) in zip(model.transformer.delta.names, delta["factors"], strict=True):
            weights[name] += ((1 - share) * at_0 + share * at_1) * delta[name]
    plain.transformer.load_state_dict(weights)
    plain.threshold = threshold
    return plain


@torch.no_grad()
def teacher_forced(model: ActVAR, threshold: float) -> Tensor:
    rows = single_rows(model, LABELS, torch.zeros(4, 14, dtype=torch.long))
    logits: Tensor = model.transformer(*rows, model.transformer.teacher_forced(threshold))
    return logits


@pytest.mark.parametrize(("threshold", "share"), [(-5.0, 0.0), (0.0, 0.0), (0.25, 0.25), (1.0, 1.0), (7.0, 1.0)])
def test_each_threshold_has_its_share_and_what_lies_between_is_interpolated(threshold: float, share: float) -> None:
    model = model_with_delta()
    model.threshold = threshold
    plain = without(model, threshold, share)
    torch.testing.assert_close(teacher_forced(model, threshold), teacher_forced(plain, threshold), atol=1e-5, rtol=1e-5)
    assert torch.equal(model.sample_tokens(LABELS, seed=1), plain.sample_tokens(LABELS, seed=1))
    assert not torch.equal(model.sample_tokens(LABELS, seed=1), without(model).sample_tokens(LABELS, seed=1))


def test_at_budget_1_the_model_is_the_original_to_the_bit() -> None:
    model = model_with_delta()
    model.threshold = 0.5
    model.sample_tokens(LABELS, seed=1)
    model.set_budget(1.0)
    logits: list[list[Tensor]] = [[], []]
    for of, into in zip((model, without(model)), logits, strict=True):
        of.sample_tokens(LABELS, seed=1, logits=into)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*logits, strict=True))


@pytest.mark.parametrize("shared_aln", [False, True])
@torch.no_grad()
def test_what_is_sampled_is_what_training_sees(shared_aln: bool) -> None:
    model = model_with_delta(token_gate=True, shared_aln=shared_aln)
    model.threshold = 0.3
    tokens = model.sample_tokens(LABELS, seed=3, settings=SamplingSettings(1.5, top_k=1))
    assert torch.equal(guided_logits(model, LABELS, tokens, 1.5).argmax(-1), tokens)


@pytest.mark.parametrize("shared_aln", [False, True])
def test_all_that_the_original_has_in_its_blocks_moves_and_nothing_else(shared_aln: bool) -> None:
    original = dict(tiny_model(shared_aln=shared_aln).transformer.blocks.named_parameters(prefix="blocks"))
    model = model_with_delta(token_gate=True, shared_aln=shared_aln)
    assert set(model.transformer.delta.names) == set(original)


def test_nothing_of_a_model_outlives_it() -> None:
    model = model_with_delta()
    teacher_forced(model, 0.5)
    weight = weakref.ref(model.transformer.blocks[0].ffn.fc1.weight)
    gc.disable()
    try:
        del model
        assert weight() is None
    finally:
        gc.enable()


def test_it_takes_no_products() -> None:
    model = model_with_delta(token_gate=True)
    model.threshold = 0.3
    work = count_work(model, LABELS, seed=0)
    work.check()
    assert work.counter.cost < 0.6


def test_a_change_of_the_weights_is_noticed() -> None:
    model = model_with_delta()
    before = teacher_forced(model, 0.5)
    with torch.no_grad():
        model.transformer.delta.factors.mul_(2)
    assert not torch.equal(teacher_forced(model, 0.5), before)
    changed = teacher_forced(model, 0.5)
    model.transformer.blocks[0].ffn = copy.deepcopy(tiny_model(experts=True, seed=1).transformer.blocks[0].ffn)
    assert not torch.equal(teacher_forced(model, 0.5), changed)


def test_what_learns_is_the_change_and_the_share_at_that_threshold() -> None:
    model = model_with_delta()
    var = model.transformer
    rows = single_rows(model, LABELS, torch.zeros(4, 14, dtype=torch.long))
    var.requires_grad_(False)
    var.delta.requires_grad_(True)
    var(*rows, var.teacher_forced(0.0)).square().sum().backward()
    assert var.delta.factors.grad[:, 0].all()
    assert not var.delta.factors.grad[:, 1].any()
    assert all(p.grad.any() for p in var.delta.blocks.parameters())


def test_a_pass_leaves_the_weights_alone_also_when_it_fails() -> None:
    model = model_with_delta()
    before = dict(model.transformer.named_parameters())
    model.threshold = 0.5
    model.sample_tokens(LABELS, seed=1)
    model.transformer.blocks[1].attn.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.sample_tokens(LABELS, seed=1)
    after = dict(model.transformer.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name] is before[name] for name in before)


def test_threads_that_share_a_model_do_not_meet_each_others_weights() -> None:
    model = model_with_delta()

    def run(number: int) -> Tensor:
        return teacher_forced(model, float(number % 2))

    expected = [run(0), run(1)]
    with ThreadPoolExecutor(4) as pool:
        for number, made in enumerate(pool.map(run, range(40))):
            assert torch.equal(made, expected[number % 2])


def test_a_copy_samples_as_the_model_it_is_of() -> None:
    model = model_with_delta()
    model.threshold = 0.5
    tokens = model.sample_tokens(LABELS, seed=1)
    assert torch.equal(copy.deepcopy(model).sample_tokens(LABELS, seed=1), tokens)


def test_it_is_saved_with_the_model(tmp_path: Path) -> None:
    model = model_with_delta()
    read = actvar_cli.load(save(tmp_path / "m.safetensors", model, {}))
    for threshold in (0.2, None):
        read.threshold = model.threshold = threshold
        assert torch.equal(read.sample_tokens(LABELS, seed=1), model.sample_tokens(LABELS, seed=1))


def test_it_moves_weights_of_half_precision_too() -> None:
    exact = model_with_delta()
    model = set_dtype(copy.deepcopy(exact), "bfloat16")
    assert model.transformer.delta.factors.dtype == torch.float32
    assert model.transformer.weights(0.5).tensors[0].dtype in (torch.bfloat16, torch.float32)
    torch.testing.assert_close(teacher_forced(model, 0.5), teacher_forced(exact, 0.5), atol=0.1, rtol=0.1)


@torch.no_grad()
def test_weights_that_somebody_keeps_are_not_made_again() -> None:
    model = model_with_delta()
    first = model.transformer.weights(0.5)
    assert model.transformer.weights(0.25) is not first
    assert model.transformer.weights(0.5) is first
