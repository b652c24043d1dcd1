from __future__ import annotations

import pytest
import torch

from actvar_cli.model import noise
from actvar_cli.model.noise import exponential_like


@pytest.mark.parametrize("at_once", [7, 2**20])
@pytest.mark.parametrize("same", [True, False])
def test_the_numbers_are_torchs(monkeypatch: pytest.MonkeyPatch, at_once: int, same: bool) -> None:
    monkeypatch.setattr(noise, "AT_ONCE", at_once)
    if not same:
        # A CPU on which torch draws in another way.
        monkeypatch.setattr(noise, "_equal", lambda: False)
    ours, theirs = (torch.Generator().manual_seed(3) for _ in range(2))
    x = torch.empty(5, 9)
    for _ in range(2):
        assert torch.equal(exponential_like(x, ours), torch.empty(5, 9).exponential_(generator=theirs))
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_without_a_generator_the_global_seed_holds() -> None:
    torch.manual_seed(1)
    first = exponential_like(torch.empty(4), None)
    torch.manual_seed(1)
    assert torch.equal(exponential_like(torch.empty(4), None), first)
