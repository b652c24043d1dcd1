from __future__ import annotations

import pytest
import torch

from actvar_cli.evaluate import agreement
from actvar_cli.evaluate.agreement import AgreementSums, add_agreement, guided_logits
from actvar_cli.model.sampling import SamplingSettings
from tests.tiny import tiny_model

LABELS = torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize("threshold", [None, 0.0])
def test_logits_are_those_the_sampler_draws_from(threshold: float | None) -> None:
    model = tiny_model(experts=True, token_gate=True)
    model.threshold = threshold
    # With one candidate the sampler takes the first choice everywhere.
    tokens = model.sample(LABELS, seed=0, settings=SamplingSettings(cfg=2.0, top_k=1)).tokens
    assert torch.equal(guided_logits(model, LABELS, tokens, cfg=2.0).argmax(-1), tokens)


def test_a_model_agrees_with_itself() -> None:
    model = tiny_model()
    sums = AgreementSums.empty(3)
    add_agreement(sums, model, model, LABELS, model.sample(LABELS, seed=0).tokens, cfg=1.5)
    assert sums.kl.tolist() == [0, 0, 0]
    assert sums.tokens.tolist() == sums.equal.tolist() == [4, 16, 36]


def test_kl_and_matches_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = tiny_model(seed=0), tiny_model(seed=1)
    tokens = teacher.sample(LABELS, seed=0).tokens
    p = guided_logits(teacher, LABELS, tokens, 1.5).softmax(-1)
    q = guided_logits(student, LABELS, tokens, 1.5).softmax(-1)
    kl = (p * (p / q).log()).sum(-1).sum(0)
    expected = [part.sum().item() for part in kl.split([1, 4, 9])]
    for at_once in (1, 2**25):
        monkeypatch.setattr(agreement, "_LOGITS_AT_ONCE", at_once)
        sums = AgreementSums.empty(3)
        add_agreement(sums, student, teacher, LABELS, tokens, cfg=1.5)
        assert sums.kl.tolist() == pytest.approx(expected, rel=1e-4)
        assert sums.equal.sum().item() == (p.argmax(-1) == q.argmax(-1)).sum().item()
        assert sums.tokens.tolist() == [4, 16, 36]
