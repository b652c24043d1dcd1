"""First weights by regression."""

from __future__ import annotations

import torch

from actvar_cli.convert.regression import fit_perceptron, fit_reconstruction, relative_energy
from actvar_cli.model.block import Record
from actvar_cli.model.config import ReconstructionKind
from actvar_cli.model.router import Router
from actvar_cli.model.token_gate import Reconstruction


def seen(h: torch.Tensor, update: torch.Tensor, previous: torch.Tensor | None = None) -> Record:
    return Record(h, h, h, update, torch.zeros_like(h) if previous is None else previous, h + update)


def reconstruction(kind: ReconstructionKind, rank: int = 3) -> Reconstruction:
    return Reconstruction(24, 24, rank, kind).requires_grad_(False)


def test_relative_energy_is_a_log_ratio() -> None:
    got = relative_energy(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 50.0]]))
    torch.testing.assert_close(got.exp(), torch.tensor([0.01]))


def test_reconstruction_finds_a_low_rank_map_with_its_offset() -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(2000, 24, generator=generator) + 1
    low_rank = torch.randn(24, 3, generator=generator) @ torch.randn(3, 24, generator=generator)
    update = h @ low_rank + torch.randn(24, generator=generator)
    net = reconstruction("low-rank")
    assert fit_reconstruction(net, seen(h, update)) > 0.999
    torch.testing.assert_close(net(h), update, atol=0.3, rtol=0.02)


def test_a_higher_rank_explains_more() -> None:
    generator = torch.Generator().manual_seed(0)
    h, update = torch.randn(2000, 24, generator=generator), None
    update = h @ torch.randn(24, 24, generator=generator)
    explained = [fit_reconstruction(reconstruction("low-rank", rank), seen(h, update)) for rank in (1, 4, 12, 24)]
    assert explained == sorted(explained)
    assert explained[0] < 0.4
    assert explained[-1] > 0.99


def test_each_kind_explains_what_it_is_made_of() -> None:
    generator = torch.Generator().manual_seed(0)
    h, previous = torch.randn(2, 2000, 24, generator=generator)
    gain, constant = torch.randn(2, 24, generator=generator)
    low_rank = torch.randn(24, 3, generator=generator) @ torch.randn(3, 24, generator=generator)

    def explained(update: torch.Tensor) -> list[float]:
        kinds: tuple[ReconstructionKind, ...] = ("identity", "constant", "previous", "low-rank", "previous+low-rank")
        return [round(fit_reconstruction(reconstruction(kind), seen(h, update, previous)), 2) for kind in kinds]

    assert explained(constant.expand(2000, -1)) == [0, 1, 1, 1, 1]
    assert explained(gain * previous + constant)[2] == 1
    both = explained(3 * gain * previous + h @ low_rank + constant)
    assert both[-1] == 1
    assert max(both[:-1]) < 0.9


def test_router_learns_what_varies() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 16, generator=generator)
    targets = torch.stack([x[:, 0].abs() - 9, x[:, 1] - 5], 1)
    torch.manual_seed(0)
    router = Router(16, 16, 2)
    assert fit_perceptron(router, x, targets, generator) > 0.9
