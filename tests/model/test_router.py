"""The kinds of router."""

from __future__ import annotations

import torch

from actvar_cli.model.config import ExpertsConfig, RouterKind
from actvar_cli.model.router import router_of
from tests.tiny import tiny_config


def scores(kind: RouterKind, x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    experts = ExpertsConfig(num_experts=4, router_dim=8, router=kind)
    router = router_of(tiny_config().model_copy(update={"experts": experts}), 0)
    for parameter in router.parameters():
        torch.nn.init.normal_(parameter)
    return router(x)


def test_a_learned_router_looks_at_the_token() -> None:
    a, b = scores("learned", torch.randn(2, 32))
    assert not torch.allclose(a, b)


def test_the_best_expert_of_a_token_is_always_within_a_relative_threshold() -> None:
    x = torch.randn(50, 32)
    made = scores("relative", x)
    torch.testing.assert_close(made.amax(1), torch.zeros(50))
    torch.testing.assert_close(made.argmax(1), scores("learned", x).argmax(1))


def test_a_static_router_treats_all_tokens_alike() -> None:
    made = scores("static", torch.randn(3, 5, 32))
    assert made.shape == (3, 5, 4)
    assert len(made.flatten(0, 1).unique(dim=0)) == 1


def test_random_scores_differ_by_token_and_come_again() -> None:
    made = scores("random", torch.randn(50, 32))
    assert len(made.unique(dim=0)) == 50
    assert torch.equal(made, scores("random", torch.randn(50, 32)))


def test_without_a_router_everything_is_on() -> None:
    assert bool((scores("none", torch.randn(3, 16)) > 50).all())
