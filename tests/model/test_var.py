"""The compressed model: what training masks is what sampling skips."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from actvar_cli.distill.cost import CostModel
from actvar_cli.model.counters import WorkCounter
from actvar_cli.model.sampling import ActVAR
from tests.tiny import tiny_model

KINDS = [
    {"experts": True},
    {"experts": True, "token_gate": True},
    {"experts": True, "token_gate": True, "shared_aln": True},
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
