"""Means over the computed tokens around a token."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from actvar_cli.model.neighbours import Around, mean_of_computed
from actvar_cli.model.token_gate import GridGate, grid_step


def plane(side: int) -> torch.Tensor:
    """Tokens (1, side², 1) whose value grows evenly to the right and downwards."""
    place = torch.arange(float(side))
    return (10 * place[:, None] + place).view(1, -1, 1)


def test_from_three_in_four_left_out_what_is_even_is_rebuilt_exactly() -> None:
    keep = (grid_step(5, torch.device("cpu")) > 1).expand(1, -1)
    made = mean_of_computed(plane(5), keep, 5)
    torch.testing.assert_close(made[~keep], plane(5)[~keep])


def test_those_beside_count_twice_as_much_as_those_across_a_corner() -> None:
    x = torch.zeros(1, 9, 1)
    x[0, 0], x[0, 1] = 3.0, 6.0
    keep = torch.zeros(1, 9, dtype=torch.bool)
    keep[0, :2] = True
    made = mean_of_computed(x, keep, 3)[0, :, 0]
    # Below the left one, below the right one, and where neither is near.
    torch.testing.assert_close(made[[3, 4, 8]], torch.tensor([(2 * 3 + 6) / 3, (3 + 2 * 6) / 3, 0]))


def test_what_was_not_computed_may_be_anything() -> None:
    x = plane(3)
    keep = torch.ones(1, 9, dtype=torch.bool)
    keep[0, 4] = False
    x[0, 4] = torch.nan
    assert torch.isfinite(mean_of_computed(x, keep, 3)).all()


@given(side=st.integers(1, 6), seed=st.integers(0, 1000), share=st.floats(0, 1))
def test_few_tokens_get_the_means_that_all_do(side: int, seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, side * side, 4, generator=generator)
    keep = torch.rand(3, side * side, generator=generator) < share
    rest = (~keep).flatten().nonzero().squeeze(1)
    around = Around(keep, rest, side)
    expected = mean_of_computed(x, keep, side).flatten(0, 1)[rest]
    torch.testing.assert_close(around.mean(x.flatten(0, 1)), expected)
    only_kept = x[keep]
    torch.testing.assert_close(around.mean(only_kept, keep.flatten().cumsum(0) - 1), expected)


def test_a_grid_gate_leaves_out_every_second_token_and_then_three_of_four() -> None:
    gate = GridGate((1, 2, 4))
    gate.scores.data[2] = torch.tensor([1.0, 2.0])
    h = torch.randn(2, 16, 8)
    kept = {cut: gate(h, 2, above=cut).view(2, 4, 4) for cut in (0.0, 1.0, 2.0, 1e9)}
    assert [int(keep.sum()) for keep in kept.values()] == [32, 16, 8, 8]
    assert torch.equal(kept[1.0][0], (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 0)
    assert torch.equal(kept[2.0], kept[1e9])
    # In a whole sequence each scale has its own grid and scores.
    scales = torch.tensor([0] + 4 * [1] + 16 * [2])
    assert torch.equal(gate(torch.randn(2, 21, 8), scales)[:, 5:], gate(h, 2))


def test_what_sampling_left_in_the_cache_can_be_trained_with() -> None:
    keep = torch.tensor([[True, False, False, True]])
    with torch.inference_mode():
        mean_of_computed(torch.ones(1, 4, 2), keep, 2)
    x = torch.ones(1, 4, 2, requires_grad=True)
    mean_of_computed(x, keep, 2).sum().backward()
    assert x.grad is not None
    assert x.grad[0, :, 0].tolist() == [2, 0, 0, 2]
