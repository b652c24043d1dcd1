"""Tokens that all rows leave out alike."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from actvar_cli.model.alike import pattern_of
from actvar_cli.model.neighbours import mean_of_computed

CPU = torch.device("cpu")


@given(side=st.integers(1, 5), seed=st.integers(0, 1000), share=st.floats(0, 1))
def test_tokens_are_parted_averaged_and_put_together_again(side: int, seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, side * side, 4, generator=generator)
    keep = torch.rand(side * side, generator=generator) < share
    pattern = pattern_of(tuple(keep.tolist()), side, CPU)
    kept, rest = x[:, pattern.kept], x[:, pattern.rest]
    assert torch.equal(kept, x[:, keep]) and torch.equal(rest, x[:, ~keep])
    assert torch.equal(pattern.together(kept, rest), x)
    torch.testing.assert_close(pattern.mean(kept), mean_of_computed(x, keep.expand(3, -1), side)[:, ~keep])


def test_a_pattern_that_sampling_made_can_be_trained_with() -> None:
    with torch.inference_mode():
        pattern = pattern_of((True, False, False, True, True, False, True, False, True), 3, CPU)
    x = torch.ones(1, 5, 2, requires_grad=True)
    pattern.mean(x).sum().backward()
    assert x.grad is not None and bool(x.grad.any())
