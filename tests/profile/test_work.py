from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from actvar_cli.errors import ActvarError
from actvar_cli.model import counters, dispatch
from actvar_cli.model.experts import ExpertFFN
from actvar_cli.model.rebuild import rebuilt
from actvar_cli.profile.work import count_work, is_part, part_of
from tests.tiny import tiny_model

LABELS = torch.tensor([0, 1, 2, 0, 1])

KINDS: list[dict[str, Any]] = [
    {},
    {"shared_aln": True},
    {"experts": True},
    {"token_gate": True},
    {"experts": True, "token_gate": True},
    {"experts": True, "token_gate": True, "shared_aln": True},
    {"experts": True, "token_gate": True, "guidance": True},
    {"experts": (2, 8), "token_gate": True},
    {"experts": True, "guidance": True, "delta": True},
    {"experts": True, "guidance": True, "context": True},
]


CASES = [(kind, None) for kind in KINDS] + [(kind, t) for kind in KINDS[2:] for t in (-math.inf, 0.0, math.inf)]


@pytest.mark.parametrize(
    ("kind", "threshold"), CASES, ids=lambda case: "+".join(case) if isinstance(case, dict) else None
)
def test_all_counts_agree_to_the_last_product(kind: dict[str, Any], threshold: float | None) -> None:
    model = tiny_model(**kind)
    model.threshold = threshold
    work = count_work(model, LABELS, seed=1)
    work.check()
    assert work.transformer_macs == work.counter.total
    assert work.transformer_macs_torch == work.counter.total
    assert work.difference == work.difference_torch == 0
    assert work.by_part == {p: v for p, v in zip(counters.PARTS, _own(work), strict=True) if p in work.by_part}


@pytest.mark.parametrize("kv_rank", [0, 2])
@pytest.mark.parametrize("kind", ["learned", "grid"])
@pytest.mark.parametrize("reconstruction", ["neighbours", "neighbours+low-rank", "previous+low-rank"])
def test_they_agree_whatever_stands_in_for_skipped_tokens(kind: str, reconstruction: str, kv_rank: int) -> None:
    model = tiny_model(experts=True, token_gate=True)
    assert model.config.token_gate is not None
    gate = model.config.token_gate.model_copy(
        update={"kind": kind, "reconstruction": reconstruction, "kv_rank": kv_rank}
    )
    model = rebuilt(model, model.config.model_copy(update={"token_gate": gate}))
    for threshold in (0.5, math.inf):
        model.threshold = threshold
        work = count_work(model, LABELS, seed=1)
        work.check()
        assert work.transformer_macs == work.transformer_macs_torch == work.counter.total
        assert bool(work.by_part.get("reconstruction")) == ("low-rank" in reconstruction or kv_rank > 0)


def test_decisions_that_change_nothing_are_counted_too() -> None:
    model = tiny_model(experts=True, token_gate=True)
    model.threshold = math.inf
    work = count_work(model, LABELS, seed=0)
    # Two blocks, ten rows: routers see the one token of the first scale, gates the 13 of the others.
    assert work.by_part["router"] == 2 * 10 * 1 * 8 * (32 + 4)
    assert work.by_part["token_gate"] == 2 * 10 * 13 * 4 * (32 + 1)


def _own(work: Any) -> list[float]:
    return [round(value * work.images) for value in work.counter.by_part().values()]


def test_the_traced_sampling_is_the_very_same() -> None:
    model = tiny_model(experts=True, token_gate=True)
    model.threshold = 0.0
    counter = counters.WorkCounter(model.config)
    plain = model.sample(LABELS, seed=3, counter=counter)
    work = count_work(model, LABELS, seed=3)
    assert torch.equal(work.tokens, plain.tokens)
    assert work.counter.macs == counter.macs
    assert work.counter.density("tokens") == counter.density("tokens")
    assert all(type(value) is int for value in work.counter.macs.values())


def test_tokenizer_counts_convolutions_and_attention_but_no_norms() -> None:
    model = tiny_model()
    work = count_work(model, LABELS[:1], seed=0)
    convolutions = [m for m in model.tokenizer.decoder.modules() if isinstance(m, torch.nn.Conv2d)]
    # One image at 3 x 3 and 6 x 6: the level of 6 x 6 is up.0, everything else is at 3 x 3 but its up-sampling.
    at_six = set(model.tokenizer.decoder.up[0].modules()) | set(model.tokenizer.decoder.up[1].upsample.modules())
    at_six |= {model.tokenizer.decoder.conv_out}
    products = sum(m.weight.numel() * (36 if m in at_six else 9) for m in convolutions)
    attentions = 1 + len(model.tokenizer.decoder.up[1].attn)
    products += attentions * 2 * 9 * 9 * 32
    assert work.tokenizer["decoder"] == products


@pytest.mark.parametrize(
    ("formula", "part"),
    [("ffn_macs", "ffn"), ("attention_macs", "attention"), ("router_macs", "router"), ("gate_macs", "token_gate")],
)
def test_a_wrong_counter_is_caught(monkeypatch: pytest.MonkeyPatch, formula: str, part: str) -> None:
    right = getattr(counters, formula)
    monkeypatch.setattr(counters, formula, lambda *args: round(1.01 * right(*args)))
    model = tiny_model(experts=True, token_gate=True)
    model.threshold = 0.0
    with pytest.raises(ActvarError, match=f"counts of {part} disagree"):
        count_work(model, LABELS, seed=0).check()


def test_work_that_a_model_forgets_to_report_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters.WorkCounter, "experts", lambda *args: None)
    with pytest.raises(ActvarError, match="counts of ffn disagree"):
        count_work(tiny_model(), LABELS, seed=0).check()


def test_a_dense_computation_that_pretends_to_skip_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "run", dispatch.dense)
    model = tiny_model(experts=True)
    model.threshold = 0.0
    with pytest.raises(ActvarError, match="counts of ffn disagree"):
        count_work(model, LABELS, seed=0).check()


def test_a_product_that_fvcore_does_not_know_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExpertFFN, "forward", lambda self, x, on=None: torch.tensordot(x, self.fc1.weight[:32], 1))
    with pytest.raises(ActvarError, match=r"cannot count aten::\w+, which looks like a product"):
        count_work(tiny_model(experts=True), LABELS, seed=0)


def test_every_parameter_belongs_to_a_part() -> None:
    for kind in KINDS:
        for name, _ in tiny_model(**kind).transformer.named_parameters():
            assert part_of(name) in counters.PARTS


def test_parts_are_counted_once() -> None:
    assert is_part("head")
    assert is_part("blocks.3.attn")
    assert not is_part("blocks.3")
    assert not is_part("blocks.3.attn.proj")
    assert not is_part("head_nm.ada_lin")
