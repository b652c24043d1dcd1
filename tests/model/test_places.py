"""Tokens that are computed and the rest."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actvar_cli.model.neighbours import mean_of_computed
from actvar_cli.model.places import Places, Uneven, alike

CPU = torch.device("cpu")


@settings(deadline=None)
@given(side=st.integers(1, 5), seed=st.integers(0, 1000), share=st.floats(0, 1), same=st.booleans())
def test_tokens_are_parted_averaged_and_put_together_again(side: int, seed: int, share: float, same: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, side * side, 4, generator=generator)
    keep = torch.rand(1 if same else 3, side * side, generator=generator) < share
    places: Places = alike(tuple(keep[0].tolist()), side, CPU) if same else Uneven(keep, side)
    keep = keep.expand(3, -1)
    kept, rest = places.of_kept(x), places.of_rest(x)
    assert torch.equal(kept.reshape(-1, 4), x[keep]) and torch.equal(rest.reshape(-1, 4), x[~keep])
    assert torch.equal(places.together(kept, rest), x)
    means = mean_of_computed(x, keep, side)[~keep]
    torch.testing.assert_close(places.mean(kept).reshape(-1, 4), means)
    torch.testing.assert_close(places.beside(x).reshape(-1, 4), x[~keep] - means)


def test_places_that_sampling_made_can_be_trained_with() -> None:
    with torch.inference_mode():
        places = alike((True, False, False, True, True, False, True, False, True), 3, CPU)
    x = torch.ones(1, 5, 2, requires_grad=True)
    places.mean(x).sum().backward()
    assert x.grad is not None and bool(x.grad.any())
