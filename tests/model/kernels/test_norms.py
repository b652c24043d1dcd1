from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from actvar_cli.model.kernels.norms import Update, split_heads, sum_adaln

DIM, EPS = 96, 1e-6


def adaln_of(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, (DIM,), eps=EPS) * scale + shift


@torch.no_grad()
def test_tokens_are_normalised_with_the_parameters_of_their_row() -> None:
    x, ada = torch.randn(3, 5, DIM), torch.randn(3, 6, 1, DIM)
    scale, shift = ada[:, 2], ada[:, 4]
    same, made = sum_adaln(x, None, scale, shift, EPS, torch.float16)
    assert same is x
    assert made.dtype == torch.float16
    torch.testing.assert_close(made.float(), adaln_of(x, scale, shift), atol=1e-2, rtol=1e-2)


@torch.no_grad()
def test_the_sum_before_is_done_on_the_way() -> None:
    x, added, ada = torch.randn(3, 5, DIM), torch.randn(3, 5, DIM).half(), torch.randn(3, 6, 1, DIM)
    total, made = sum_adaln(x, Update(ada[:, 0], added), ada[:, 2], ada[:, 4], EPS, torch.float32)
    torch.testing.assert_close(total, x + ada[:, 0] * added)
    torch.testing.assert_close(made, adaln_of(total, ada[:, 2], ada[:, 4]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_tokens_that_were_skipped_get_their_stand_in() -> None:
    y, other, added, stand_in = (torch.randn(3, 5, DIM) for _ in range(4))
    ada, keep = torch.randn(3, 6, 1, DIM), torch.rand(3, 5) < 0.5
    # What was not computed may be anything.
    y[~keep] = added[~keep] = math.nan
    update = Update(ada[:, 0], added, keep, other, stand_in)
    total, made = sum_adaln(y, update, ada[:, 2], ada[:, 4], EPS, torch.float32)
    torch.testing.assert_close(total[keep], (y + ada[:, 0] * added)[keep])
    torch.testing.assert_close(total[~keep], (other + stand_in)[~keep])
    torch.testing.assert_close(made, adaln_of(total, ada[:, 2], ada[:, 4]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalised", [True, False])
@torch.no_grad()
def test_heads_go_to_attention_and_cache(normalised: bool) -> None:
    rows, tokens, heads, dim = 2, 5, 3, 32
    q, kv = torch.randn(rows, tokens, heads * dim), torch.randn(rows, tokens, 2 * heads * dim)
    q_bias, v_bias = torch.randn(2, heads * dim).unbind()
    # One head is longer than it may be.
    gain = torch.tensor([0.1, 1.0, 9.0])
    keys, values = torch.zeros(2, rows, heads, 12, dim).unbind()
    made = split_heads(q, kv, q_bias, v_bias, gain if normalised else None, keys, values, 4)
    q, k, v = (t.unflatten(-1, (heads, dim)) for t in (q + q_bias, *kv.chunk(2, dim=-1)))
    v = v + v_bias.view(heads, dim)
    if normalised:
        q = F.normalize(q, dim=-1) * gain.clamp_max(math.log(100)).exp()[:, None]
        k = F.normalize(k, dim=-1)
    torch.testing.assert_close(made, q)
    torch.testing.assert_close(keys[:, :, 4:9], k.transpose(1, 2))
    torch.testing.assert_close(values[:, :, 4:9], v.transpose(1, 2))
    assert not keys[:, :, :4].any() and not values[:, :, 9:].any()
