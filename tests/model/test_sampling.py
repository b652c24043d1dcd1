"""Guidance: the same for one scale, as sampling needs it, and for a whole sequence, as training and evaluation do."""

from __future__ import annotations

import torch

from actvar_cli.model.guidance import guidance_at, guidance_by_position, guide
from tests.tiny import tiny_model


def test_guidance_moves_away_from_what_no_class_would_give() -> None:
    conditional, unconditional = torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    got = guide(torch.cat((conditional, unconditional)), torch.tensor([[0.0], [1.5]]))
    torch.testing.assert_close(got[0, 0], conditional[0, 0])
    torch.testing.assert_close(got[0, 1], 2.5 * conditional[0, 1] - 1.5 * unconditional[0, 1])


def test_guidance_rises_from_nothing_to_its_full_strength() -> None:
    model = tiny_model()
    patch_nums = model.config.tokenizer.patch_nums
    strengths = guidance_by_position(model.config, 1.5)
    assert strengths.shape == (model.config.tokenizer.num_tokens, 1)
    assert float(strengths[0]) == 0
    assert float(strengths[-1]) == 1.5
    end = 0
    for scale, pn in enumerate(patch_nums):
        here = strengths[end : end + pn * pn]
        torch.testing.assert_close(here, torch.full_like(here, guidance_at(scale, len(patch_nums), 1.5)))
        end += pn * pn


def test_a_model_of_one_scale_is_not_guided() -> None:
    assert guidance_at(0, 1, 1.5) == 0
