"""Attention of a few of a scale's tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from actvar_cli.model import attention
from actvar_cli.model.cache import KVCache
from actvar_cli.model.config import TransformerConfig
from actvar_cli.model.counters import exactly
from actvar_cli.model.places import Uneven

LENGTH = 70


@pytest.mark.parametrize("l2_norm", [True, False])
@pytest.mark.parametrize(
    ("counts", "calls"),
    [([40, 41, 35, 40], 1), ([70, 2, 1, 69], 2), ([0, 3, 0, 70], 2), ([0, 0, 0, 0], 0), ([70, 70, 70, 70], 1)],
)
@torch.no_grad()
def test_kept_tokens_are_attended_as_if_all_were(
    monkeypatch: pytest.MonkeyPatch, counts: list[int], calls: int, l2_norm: bool
) -> None:
    torch.manual_seed(0)
    layer = attention.SelfAttention(TransformerConfig(depth=1, embed_dim=32, num_heads=2, attn_l2_norm=l2_norm), 0)
    h = torch.randn(len(counts), LENGTH, 32)
    keep = torch.stack([torch.randperm(LENGTH) < count for count in counts])
    everything = layer(h, cache=_cache(len(counts)))

    made: list[int] = []
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: (made.append(1), original(*a, **k))[1])
    kept = layer(h, cache=_cache(len(counts)), places=Uneven(keep, 0))
    torch.testing.assert_close(kept, everything[keep], atol=1e-5, rtol=1e-5)
    # As few groups as pays; but as many as there are numbers where the work is counted.
    assert len(made) == calls
    with exactly():
        kept = layer(h, cache=_cache(len(counts)), places=Uneven(keep, 0))
    torch.testing.assert_close(kept, everything[keep], atol=1e-5, rtol=1e-5)
    assert len(made) - calls == len(set(counts) - {0})


def _cache(rows: int) -> KVCache:
    cache = KVCache(torch.empty(2, 1, rows, 2, LENGTH, 16))
    cache.begin_scale(LENGTH)
    return cache
