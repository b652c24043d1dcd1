"""The compressed model: what training masks is what sampling skips."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from actvar_cli.distill.cost import CostModel
from actvar_cli.errors import InputError
from actvar_cli.model.config import ModelConfig
from actvar_cli.model.counters import WorkCounter
from actvar_cli.model.sampling import ActVAR
from tests.tiny import tiny_model

KINDS = [
    {"experts": True},
    {"experts": True, "token_gate": True},
    {"experts": True, "token_gate": True, "shared_aln": True},
    {"experts": (2, 8), "token_gate": True},
]


def random_rows(model: ActVAR, rows: int = 4) -> tuple[Tensor, Tensor]:
    """Labels and joined random tokens."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(rows) % 3
    return labels, torch.randint(32, (rows, model.config.tokenizer.num_tokens), generator=generator)


def walk(model: ActVAR, labels: Tensor, tokens: Tensor, threshold: float | None, counter: WorkCounter) -> Tensor:
    """Logits of known tokens through the cache, scale by scale, as sampling computes them."""
    var, quantizer = model.transformer, model.tokenizer.quantize
    cond = var.class_emb(labels)
    ada, positions, cache = var.conditions(cond), var.positions(), var.new_cache(len(labels))
    latents = quantizer.accumulate(model.tokenizer.split(tokens))
    x, end, logits = cond[:, None] + var.pos_start + positions[:, :1], 1, []
    for scale, pn in enumerate(model.config.tokenizer.patch_nums):
        if scale:
            x = var.word_embed(quantizer.next_input(latents[scale - 1], scale)) + positions[:, end : end + pn * pn]
            end += pn * pn
        logits.append(var.scale_logits(x, cond, ada, cache, scale, threshold=threshold, counter=counter))
    return torch.cat(logits, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threshold", [None, -0.5, 0.0, 0.5, 100.0])
@torch.no_grad()
def test_skipping_equals_masking(kind: dict[str, bool], threshold: float | None) -> None:
    model = tiny_model(**kind)
    labels, tokens = random_rows(model)
    var_input = model.tokenizer.quantize.teacher_forcing_input(model.tokenizer.split(tokens))
    context = model.transformer.teacher_forced(threshold)
    masked = model.transformer(labels, var_input, context)
    counter = WorkCounter(model.config)
    skipped = walk(model, labels, tokens, threshold, counter)
    torch.testing.assert_close(skipped, masked, atol=2e-5, rtol=1e-4)
    if threshold is not None:
        # The differentiable cost and the count of what ran are the same number, up to what is done once per image.
        counter.begin_image(len(labels), len(labels) // 2)
        for scale, pn in enumerate(model.config.tokenizer.patch_nums):
            counter.frame(scale, 4, 4 * pn * pn, 2 * pn * pn if scale else 0)
        assert counter.cost == pytest.approx(float(CostModel(model.config, model.device)(context.decisions)), rel=1e-5)


def with_offsets(model: ActVAR, offsets: tuple[float, ...]) -> ActVAR:
    """``model`` with scores that differ by scale."""
    assert model.config.experts is not None
    experts = model.config.experts.model_copy(update={"scale_offsets": offsets})
    model.config = model.transformer.config = model.config.model_copy(update={"experts": experts})
    return model


@torch.no_grad()
def test_offsets_move_the_scores_of_their_scale_alone_and_the_same_in_both_ways() -> None:
    model = tiny_model(experts=True, token_gate=True)
    labels, tokens = random_rows(model)
    var_input = model.tokenizer.quantize.teacher_forcing_input(model.tokenizer.split(tokens))
    counter = WorkCounter(model.config)
    walk(with_offsets(model, (100.0, 0.0, -100.0)), labels, tokens, 0.0, counter)
    experts, kept = counter.density("experts"), counter.density("tokens")
    assert [row[0] for row in experts] == [1.0, 1.0]
    assert [row[2] for row in kept] == [0.0, 0.0]
    with_offsets(model, (2.0, 0.5, -0.3))
    masked = model.transformer(labels, var_input, model.transformer.teacher_forced(0.0))
    skipped = walk(model, labels, tokens, 0.0, WorkCounter(model.config))
    torch.testing.assert_close(skipped, masked, atol=2e-5, rtol=1e-4)


def test_there_is_one_offset_for_each_scale() -> None:
    config = tiny_model(experts=True).config.model_dump()
    config["experts"]["scale_offsets"] = (1.0, 2.0)
    with pytest.raises(ValueError, match="2 scale_offsets for 3 scales"):
        ModelConfig.model_validate(config)


@torch.no_grad()
def test_a_model_with_everything_off_still_attends_to_every_token() -> None:
    model = tiny_model(experts=True, token_gate=True)
    counter = WorkCounter(model.config)
    model.threshold = 100.0
    images = model.sample([0, 1, 2], seed=0, counter=counter).images
    assert torch.isfinite(images).all()
    assert counter.density("experts")[0] == [0.0, 0.0, 0.0]
    assert counter.density("tokens")[0] == [1.0, 0.0, 0.0]
    assert counter.cost < 0.6


def test_budget_sets_the_threshold_between_dials() -> None:
    from actvar_cli.model.config import Dial

    model = tiny_model(experts=True)
    model.config = model.config.model_copy(
        update={"dials": (Dial(budget=0.6, threshold=2.0, cost=0.6), Dial(budget=0.8, threshold=1.0, cost=0.8))}
    )
    model.set_budget(0.7)
    assert model.threshold == pytest.approx(1.5)
    model.set_budget(1.0)
    assert model.threshold is None
    with pytest.raises(ValueError, match=r"budget 0.5 is outside the calibrated range 0.6 to 0.8"):
        model.set_budget(0.5)
    with pytest.raises(ValueError, match="tiny is dense"):
        tiny_model().set_budget(0.7)


def test_sampling_is_reproducible_and_seeds_differ() -> None:
    model = tiny_model(experts=True, token_gate=True)
    model.threshold = 0.0
    a, b, c = (model.sample([0, 1], seed=s).tokens for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("label", [3, -1])
def test_a_class_that_there_is_not(label: int) -> None:
    with pytest.raises(InputError, match=f"class {label} does not exist: the model has the classes 0 to 2"):
        tiny_model().sample([0, label])
