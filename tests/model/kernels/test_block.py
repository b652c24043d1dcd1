"""Sampling by kernels makes what sampling by torch makes; the counter makes it take the latter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from actvar_cli.model.counters import WorkCounter, exactly
from actvar_cli.model.kernels import block, usable
from actvar_cli.model.precision import set_dtype
from actvar_cli.model.sampling import ActVAR
from actvar_cli.profile.parts import Clock
from tests.model.test_var import random_rows, walk
from tests.tiny import tiny_model

KINDS: list[tuple[dict[str, Any], float | None]] = [
    ({}, None),
    ({"shared_aln": True}, 0.0),
    ({"experts": True}, None),
    ({"experts": (2, 4)}, 0.0),
    ({"experts": True, "token_gate": True}, 0.0),
    ({"experts": True, "token_gate": True}, 100.0),
]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The blocks that were computed by kernels."""
    found: list[int] = []
    original = block.sample

    def watched(of: Any, *args: Any) -> Any:
        found.append(of.index)
        return original(of, *args)

    monkeypatch.setattr(block, "sample", watched)
    return found


def low(kind: dict[str, Any]) -> ActVAR:
    return set_dtype(tiny_model(**kind), "float16")


@pytest.mark.parametrize(("kind", "threshold"), KINDS)
@torch.no_grad()
def test_the_same_logits(kind: dict[str, Any], threshold: float | None, calls: list[int]) -> None:
    exact = tiny_model(**kind)
    labels, tokens = random_rows(exact)
    expected = walk(exact, labels, tokens, threshold, WorkCounter(exact.config))
    assert not calls
    torch.testing.assert_close(walk(low(kind), labels, tokens, threshold, None), expected, atol=5e-3, rtol=1e-2)
    assert calls == [0, 1] * 3


@pytest.mark.parametrize(
    "gate",
    [
        {"reconstruction": "previous"},
        {"reconstruction": "previous+low-rank", "skips": "attention"},
        {"kind": "deviation"},
        {"reconstruction": "neighbours+low-rank"},
        {"reconstruction": "neighbours", "skips": "attention"},
        {"reconstruction": "neighbours", "kind": "grid", "skips": "attention", "kv_rank": 3},
        {"reconstruction": "low-rank", "kv_rank": 3},
    ],
    ids=lambda gate: "+".join(map(str, gate.values())),
)
@torch.no_grad()
def test_gates_of_every_kind(gate: dict[str, Any], calls: list[int]) -> None:
    models = []
    for _ in range(2):
        model = tiny_model(experts=True, token_gate=True)
        assert model.config.token_gate is not None
        config = model.config.model_copy(update={"token_gate": model.config.token_gate.model_copy(update=gate)})
        torch.manual_seed(3)
        made = ActVAR(config, type(model.transformer)(config), model.tokenizer).eval()
        for name, parameter in made.named_parameters():
            if any(part in name for part in ("token_gate", "router", "expert_mean", "reconstruction")):
                torch.nn.init.normal_(parameter, std=0.3)
        models.append(made)
    labels, tokens = random_rows(models[0])
    expected = walk(models[0], labels, tokens, 0.0, WorkCounter(models[0].config))
    made_by_kernels = walk(set_dtype(models[1], "float16"), labels, tokens, 0.0, None)
    torch.testing.assert_close(made_by_kernels, expected, atol=1e-2, rtol=2e-2)
    assert calls


@torch.no_grad()
def test_guidance_that_was_learned() -> None:
    kind = {"experts": True, "guidance": True}
    exact, model = tiny_model(**kind), low(kind)
    exact.threshold = model.threshold = 0.0
    expected, made = ([], [])  # type: ignore[var-annotated]
    assert torch.equal(
        exact.sample_tokens([0, 1], seed=1, logits=expected), model.sample_tokens([0, 1], seed=1, logits=made)
    )
    torch.testing.assert_close(torch.cat(made, 1), torch.cat(expected, 1), atol=5e-3, rtol=1e-2)


@torch.no_grad()
def test_what_is_counted_or_float32_is_left_to_torch(calls: list[int]) -> None:
    tiny_model(experts=True).sample_tokens([0], seed=1)
    low({"experts": True}).sample_tokens([0], seed=1, counter=WorkCounter(tiny_model(experts=True).config))
    with exactly():
        low({"experts": True}).sample_tokens([0], seed=1)
    assert not calls


@torch.no_grad()
def test_one_block_that_does_not_fit_leaves_all_to_torch(calls: list[int]) -> None:
    kind = {"experts": (4, 32)}
    exact = tiny_model(**kind)
    labels, tokens = random_rows(exact)
    expected = walk(exact, labels, tokens, 0.0, WorkCounter(exact.config))
    torch.testing.assert_close(walk(low(kind), labels, tokens, 0.0, None), expected, atol=5e-3, rtol=1e-2)
    assert not calls


def test_gradients_too() -> None:
    assert not usable.usable(torch.ones(2, dtype=torch.float16))
    with torch.no_grad():
        assert usable.preferred(torch.ones(2, dtype=torch.float16))
        assert not usable.preferred(torch.ones(2))


def test_a_machine_where_triton_cannot_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "gcc").touch(mode=0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setenv("PATH", str(tmp_path))
    assert usable.can_build.__wrapped__()
    monkeypatch.setenv("PATH", "")
    assert not usable.can_build.__wrapped__()
    monkeypatch.setenv("CC", "cc")
    (tmp_path / "Python.h").unlink()
    assert not usable.can_build.__wrapped__()


def test_widths_that_do_not_fit() -> None:
    config = tiny_model().config.transformer
    assert usable.fits(config, 4)
    assert not usable.fits(config, 16)
    assert not usable.fits(config.model_copy(update={"embed_dim": 40}))


def test_a_clock_sees_the_same_parts(calls: list[int]) -> None:
    parts = []
    for model in (tiny_model(experts=True, token_gate=True), low({"experts": True, "token_gate": True})):
        model.threshold = 0.0
        clock = Clock(model)
        with clock.watching():
            model.sample([0], seed=1)
        parts.append(set(clock.parts))
    assert calls
    assert parts[0] == parts[1]
