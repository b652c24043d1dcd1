from __future__ import annotations

import pytest
import torch
from torch import Tensor

from actvar_cli.model import dispatch
from actvar_cli.model.config import TransformerConfig
from actvar_cli.model.experts import ExpertFFN
from actvar_cli.model.kernels import descriptors
from actvar_cli.model.kernels.ffn import leave_out, picked_linear, tiled_ffn
from actvar_cli.model.kernels.tiles import tiles_of

DIM, EXPERTS = 64, 8


def random_ffn(experts: int = EXPERTS) -> ExpertFFN:
    torch.manual_seed(0)
    ffn = ExpertFFN(TransformerConfig(depth=1, embed_dim=DIM, num_heads=1), experts)
    torch.nn.init.normal_(ffn.expert_mean)
    return ffn


def layers(ffn: ExpertFFN) -> tuple[Tensor, ...]:
    return ffn.fc1.weight, ffn.fc1.bias, ffn.fc2.weight, ffn.fc2.bias, ffn.expert_mean


def routes(rows: int, experts: int = EXPERTS) -> Tensor:
    """Some experts hardly ever on, one never, one always; a single one now and then."""
    densities = torch.tensor([0.0, 0.02, 0.1, 0.9, 0.97, 1.0, 0.5, 0.2])[-experts:]
    return torch.rand(rows, experts, generator=torch.Generator().manual_seed(1)) < densities


@pytest.mark.parametrize("rows", [1, 31, 200])
@pytest.mark.parametrize("experts", [1, 4, 8])
@torch.no_grad()
def test_tiles_give_what_masking_gives(rows: int, experts: int) -> None:
    ffn, on, x = random_ffn(experts), routes(rows, experts), torch.randn(rows, DIM)
    made = tiled_ffn(x, tiles_of(on, 32), *layers(ffn))
    torch.testing.assert_close(made, ffn.masked(x, on.float()), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_so_they_do_where_shared_memory_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "shared_memory", lambda _: 40_000)
    test_tiles_give_what_masking_gives(200, 8)


@torch.no_grad()
def test_one_choice_computes_the_tokens_that_were_chosen() -> None:
    ffn, keep, x = random_ffn(), torch.rand(200) < 0.4, torch.randn(200, DIM)
    tiles = tiles_of(keep.unsqueeze(1), 32)
    assert tiles.counts.tolist() == [1] * -(-int(keep.sum()) // 32) + [0] * (7 - -(-int(keep.sum()) // 32))
    torch.testing.assert_close(tiled_ffn(x, tiles, *layers(ffn)[:4])[keep], ffn(x)[keep], atol=1e-5, rtol=1e-4)
    made = picked_linear(x, tiles, ffn.fc1.weight, ffn.fc1.bias)
    torch.testing.assert_close(made[keep], (x @ ffn.fc1.weight.T + ffn.fc1.bias)[keep], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_what_is_left_out_adds_its_mean() -> None:
    ffn, on, x = random_ffn(), routes(50), torch.randn(50, DIM)
    hidden = ffn.hidden(x)
    base = leave_out(hidden, on, ffn.fc2.bias, ffn.expert_mean)
    assert not hidden.unflatten(-1, (EXPERTS, -1))[~on].any()
    torch.testing.assert_close(base + hidden @ ffn.fc2.weight.T, ffn.masked(x, on.float()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tiles_from", [0, 2**40])
@torch.no_grad()
def test_a_gpu_takes_tiles_for_many_tokens_and_masks_for_few(tiles_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "TILES_FROM", tiles_from)
    exact, ffn, on, x = random_ffn(), random_ffn(), routes(100).view(4, 25, -1), torch.randn(4, 25, DIM)
    ffn.fc1.half()
    ffn.fc2.half()
    assert dispatch.way_for(ffn, 100) == ("dense" if tiles_from else "tiles")
    made = ffn(x.half(), on)
    assert made.dtype == torch.float16
    torch.testing.assert_close(made.float(), exact.masked(x, on.float()), atol=0.02, rtol=0.02)


@torch.no_grad()
def test_tokens_that_want_the_same_are_neighbours() -> None:
    on = routes(2000)
    tiles = tiles_of(on, 64)
    assert tiles.order.sort().values.tolist() == list(range(2000))
    assert tiles.bits.tolist() == (on[tiles.order.long()].long() << torch.arange(EXPERTS)).sum(1).tolist()
    unsorted = torch.stack([part.any(0).sum() for part in on.split(64)]).float().mean()
    assert tiles.counts.float().mean() < 0.75 * unsorted
