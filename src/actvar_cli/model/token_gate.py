"""The token gate and the reconstruction: compute only tokens that still change, stand in for the rest.

``learned`` and ``grid`` gates, and reconstructions with a ``low-rank`` map, alone or over ``neighbours``, are the
product's own; the other kinds are what they are compared with. Source: ActVAR (arXiv 2511.12893) for the gate; the
reconstruction is ours (docs/method.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actvar_cli.model.config import ModelConfig, ReconstructionKind
from actvar_cli.model.deciding import Decider, Perceptron
from actvar_cli.model.products import Linear, fitted


class TokenGate(Perceptron):
    """Scores a token (…, C), the block's input after AdaLN, by how wrong its reconstruction would be.

    Scores (…) are in the units of the router's.
    """

    alike = False

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(dim, hidden, 1)

    def forward(self, x: Tensor, *scale: Any, above: float | None = None) -> Tensor:
        """See `Perceptron.forward`."""
        return super().forward(x, *scale, above=above).squeeze(-1)

    def shift(self, by: float) -> None:
        """Add ``by`` to all scores."""
        self.fc2.bias.data.add_(by)


class StaticGate(Decider):
    """The same score for all tokens of a scale: what is skipped is computed for all of them, or stood in for."""

    alike = True
    """Whether it decides the same in all rows."""

    few = True
    """Whether its ``scores`` are all that it decides by."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(shape))

    def score(self, x: Tensor, *scale: Any) -> Tensor:
        """Scores (R, l) for ``x`` (R, l, C) at one scale, or at those (l,) of each token."""
        return self.scores[scale[0]].expand(x.shape[:-1])

    def shift(self, by: float | Tensor) -> None:
        """Add ``by`` to all scores, or to each its own, in their shape."""
        self.scores.data.add_(by)


class PositionGate(StaticGate):
    """A token is left out for where it is: a sparser and sparser grid is computed, whatever is in the picture."""

    few = False

    def __init__(self, patch_nums: Sequence[int]) -> None:
        super().__init__(len(patch_nums))
        self.patch_nums = tuple(patch_nums)

    def score(self, x: Tensor, *scale: Any) -> Tensor:
        """The scale's score, higher for positions that are computed longer."""
        return super().score(x, *scale) + by_position(grid_order, self.patch_nums, scale[0], x.device)


class GridGate(StaticGate):
    """Every second token of a scale is left out, or three of four, on a fixed grid; a score for each of the two steps.

    The other tokens are always computed, so that every token has a computed one beside it. ``scores`` is (scales, 2).
    """

    def __init__(self, patch_nums: Sequence[int]) -> None:
        super().__init__(len(patch_nums), 2)
        self.patch_nums = tuple(patch_nums)

    def score(self, x: Tensor, *scale: Any) -> Tensor:
        """That of the step in which a token is left out; infinite where it never is."""
        steps = F.pad(self.scores.detach(), (0, 1), value=torch.inf)
        return steps[scale[0], by_position(grid_step, self.patch_nums, scale[0], x.device)].expand(x.shape[:-1])


def by_position(
    of: Callable[[int, torch.device], Tensor], patch_nums: Sequence[int], scale: int | Tensor, device: torch.device
) -> Tensor:
    """What ``of`` says about the positions of a scale by its side: at one ``scale``, or, if those are given, at all."""
    sides = [patch_nums[scale]] if isinstance(scale, int) else patch_nums
    return torch.cat([of(side, device) for side in sides])


@lru_cache
def grid_step(side: int, device: torch.device) -> Tensor:
    """In which step a position (side²,) is left out: 0, every second one; 1, half of the others; 2, never."""
    place = torch.arange(side, device=device) % 2
    rows, columns = place[:, None], place
    return torch.where(rows == columns, 2 - rows, 0).flatten()


class DeviationGate(StaticGate):
    """A token is left out for how little it differs from the mean of its scale: FastVAR's choice (arXiv 2503.23367)."""

    alike = few = False

    def __init__(self, patch_nums: Sequence[int]) -> None:
        super().__init__(len(patch_nums))
        self.sizes = [pn * pn for pn in patch_nums]

    def score(self, x: Tensor, *scale: Any) -> Tensor:
        """The scale's score, plus the log of the token's squared deviation relative to the scale's average."""
        parts = [x] if isinstance(scale[0], int) else x.split(self.sizes, dim=1)
        return super().score(x, *scale) + torch.cat([log_deviation(part.float()) for part in parts], dim=1)


def log_deviation(h: Tensor) -> Tensor:
    """Log of every token's squared distance from the mean of ``h`` (R, l, C), relative to the average; (R, l)."""
    energy = (h - h.mean(1, keepdim=True)).square().sum(-1)
    return (energy / energy.mean(1, keepdim=True).clamp_min(1e-12)).clamp_min(1e-6).log()


@lru_cache
def grid_order(side: int, device: torch.device) -> Tensor:
    """Offsets (side * side,) that make ever fewer positions remain, evenly spread: an ordered dither (Bayer 1973)."""
    rank = torch.zeros(1, 1)
    while len(rank) < side:
        rank = torch.cat((torch.cat((4 * rank, 4 * rank + 2), 1), torch.cat((4 * rank + 3, 4 * rank + 1), 1)))
    rank = rank[:side, :side].flatten()
    return ((rank.argsort().argsort() + 0.5) / len(rank)).logit().to(device)


class Reconstruction(nn.Module):
    """What stands in for ``out`` numbers of a skipped token, as the block's update, from the block's input after AdaLN.

    ``low-rank``: a low-rank linear map of the input. ``constant``: the same for all tokens. ``identity``: none.
    ``previous``: the update of the scale before at the same place, times a gain for each channel, plus a constant.
    ``previous+low-rank``: the sum of both. ``neighbours``: the mean update of the computed tokens around, likewise.
    ``neighbours+low-rank``: that, and a low-rank map of how the input differs from the mean of theirs.
    """

    def __init__(self, dim: int, out: int, rank: int, kind: ReconstructionKind) -> None:
        super().__init__()
        self.by_rank, self.from_previous, self.bias = "low-rank" in kind, "previous" in kind, None
        if self.by_rank:
            self.down = Linear(dim, rank, bias=False)
            self.up = Linear(rank, out)
        elif kind != "identity":
            self.bias = nn.Parameter(torch.zeros(out))
        self.from_neighbours = "neighbours" in kind
        self.reads_known = self.from_previous or self.from_neighbours
        if self.reads_known:
            self.gain = nn.Parameter(torch.zeros(out))

    def forward(
        self, h: Tensor, known: Tensor | None = None, between: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Map (…, C) to what stands in (…, out).

        ``known`` (…, out), for the kinds that read it, is the update of the scale before, from `previous_update`, or
        the mean of those around. ``between`` is what comes between the two halves of the low-rank map: it takes the
        mean of those around from what the first, which has no constant, made; ``None`` if that was taken from ``h``.
        """
        if self.by_rank:
            inner = self.down(fitted(h, self.down.weight))
            made: Tensor = self.up(between(inner) if between else inner)
        else:
            # Of neighbours only what is wanted is known, while ``h`` is of all tokens.
            made = torch.zeros_like(known if known is not None and self.reads_known else h)
        if self.bias is not None:
            made = made + self.bias
        if self.reads_known:
            assert known is not None
            made = made + self.gain * known
        return made


def previous_update(update: Tensor, before: int, side: int) -> Tensor:
    """The update (R, before², C) of one scale at the places of the next, (R, side², C): that of the nearest token."""
    index = torch.arange(side, device=update.device) * before // side
    return update[:, (index[:, None] * before + index).flatten()]


def previous_updates(update: Tensor, patch_nums: Sequence[int]) -> Tensor:
    """`previous_update` of all scales of a sequence, (R, L, C); 0 at the first."""
    parts = update.split([pn * pn for pn in patch_nums], dim=1)
    made = [previous_update(p, a, b) for p, a, b in zip(parts[:-1], patch_nums[:-1], patch_nums[1:], strict=True)]
    return torch.cat((torch.zeros_like(parts[0]), *made), dim=1)


def gate_of(config: ModelConfig) -> TokenGate | StaticGate:
    """The token gate of the kind that ``config`` names."""
    assert config.token_gate is not None
    if config.token_gate.kind == "static":
        return StaticGate(len(config.tokenizer.patch_nums))
    if config.token_gate.kind == "grid":
        return GridGate(config.tokenizer.patch_nums)
    if config.token_gate.kind == "position":
        return PositionGate(config.tokenizer.patch_nums)
    if config.token_gate.kind == "deviation":
        return DeviationGate(config.tokenizer.patch_nums)
    return TokenGate(config.transformer.embed_dim, config.token_gate.gate_dim)
