"""Weights that move with the threshold: the original's, plus a share of one learned change.

    W(threshold) = W + s(threshold) * delta

What low budgets need of the weights, budgets at which little is left out do not. One ``delta`` of every weight of the
blocks serves all, and each weight has a share of it at each threshold that was trained for. The sum is made when
another threshold is used than before, and costs no product.

Source: weights that differ by a scaled delta, arXiv 2212.04089; that the shares are learned with it is ours.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from threading import RLock
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor, nn

ADDED = ("router", "token_gate", "reconstruction", "kv_reconstruction", "expert_mean")
"""Parts of a block that the original does not have, and that are the same at every threshold."""

HIGHEST, OTHERS = 0.1, 1.0
"""The shares that training begins with: at the highest budget, at which least is left out, and at the others."""


Place = tuple[dict[str, Any], str]
"""Where a parameter is: the registry of its module, and its name there."""


class Delta(nn.Module):
    """The change of every weight of ``blocks``, under the names that these have, and ``factors`` (weights, thresholds).

    Born without effect.
    """

    def __init__(self, blocks: nn.ModuleList, thresholds: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_zeros_like(block) for block in blocks)
        self.names = [name for name, _ in self.named_parameters()]
        """The weights that change, as the transformer calls them."""
        self.factors = nn.Parameter(torch.zeros(len(self.names), thresholds))

    def begin(self) -> None:
        """Set the shares that training begins with."""
        with torch.no_grad():
            self.factors.fill_(OTHERS)
            if self.factors.shape[1] > 1:
                self.factors[:, 0] = HIGHEST

    def shares(self, threshold: float, thresholds: Sequence[float]) -> Tensor:
        """The share of every weight's change, (weights,), at ``threshold``.

        Those at ``thresholds``, which rise, are `factors`; between two it is interpolated, outside it stays.
        """
        after = bisect_right(thresholds, threshold)
        if after in (0, len(thresholds)):
            return self.factors[:, max(after - 1, 0)]
        low, high = thresholds[after - 1 : after + 1]
        return torch.lerp(self.factors[:, after - 1], self.factors[:, after], (threshold - low) / (high - low))

    def weights(self, var: nn.Module, threshold: float | None, thresholds: Sequence[float]) -> Weights:
        """What to put in the place of the weights of ``var`` at ``threshold``; ``None`` leaves them as they are.

        Where no gradient is asked for, it is made when another threshold is asked for than the last, or weights have
        changed, unless somebody still has what was made for it.
        """
        use = _uses.setdefault(self, _Use())
        if threshold is None:
            return Weights(use.lock)
        with use.lock:
            places = [_place(var, name) for name in self.names]
            base, delta = [registry[name] for registry, name in places], list(self.blocks.parameters())
            if torch.is_grad_enabled() and self.factors.requires_grad:
                return Weights(use.lock, places, self._sum(base, delta, threshold, thresholds))
            made_from = threshold, tuple(thresholds), tuple(_state(t) for t in (*base, *delta, self.factors))
            found = use.made.get(made_from)
            if found is None:
                # Ordinary tensors, also where sampling makes none: they are used again elsewhere.
                with torch.inference_mode(False), torch.no_grad():
                    found = Weights(use.lock, places, self._sum(base, delta, threshold, thresholds))
                use.made[made_from] = found
            use.last = found
            return found

    def _sum(
        self, base: Sequence[Tensor], delta: Sequence[Tensor], threshold: float, thresholds: Sequence[float]
    ) -> list[Tensor]:
        shares = self.shares(threshold, thresholds).unbind()
        return [torch.addcmul(w.detach(), s.to(d.dtype), d) for w, s, d in zip(base, shares, delta, strict=True)]


@dataclass(eq=False)
class Weights(AbstractContextManager[None]):
    """Inside, the ``tensors`` are in their ``places``; other threads that use the same model wait."""

    lock: Any
    places: list[Place] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    before: list[Any] = field(default_factory=list)

    def __enter__(self) -> None:
        self.lock.acquire()
        self.before = self._put(self.tensors)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._put(self.before)
        self.before = []
        self.lock.release()

    def _put(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Put ``tensors`` in their places, and return what was there."""
        before = [registry[name] for registry, name in self.places]
        for (registry, name), tensor in zip(self.places, tensors, strict=True):
            registry[name] = tensor
        return before


def using(weights: Weights | None) -> AbstractContextManager[None]:
    """Inside, a model has the ``weights`` that `VAR.weights` gave."""
    return nullcontext() if weights is None else weights


@dataclass
class _Use:
    """What goes with a model and is no part of it, so that a copy has its own, and nothing outlives it.

    The ``lock`` is held while its weights are others than usual, or looked at. Of what was ``made``, by what it was
    made from, the ``last`` is kept, and what a recording reads.
    """

    lock: Any = field(default_factory=RLock)
    made: WeakValueDictionary[Any, Weights] = field(default_factory=WeakValueDictionary)
    last: Weights | None = None


_uses: WeakKeyDictionary[Delta, _Use] = WeakKeyDictionary()


def _zeros_like(module: nn.Module) -> nn.Module:
    """A tree of modules with a 0 for every parameter of ``module`` that the original has."""
    made = nn.Module()
    for name, parameter in module.named_parameters(recurse=False):
        if name not in ADDED:
            made.register_parameter(name, nn.Parameter(torch.zeros_like(parameter)))
    for name, child in module.named_children():
        if name not in ADDED:
            made.add_module(name, _zeros_like(child))
    return made


def _place(var: nn.Module, name: str) -> Place:
    """Where the parameter called ``name`` is."""
    *path, last = name.split(".")
    for part in path:
        var = var._modules[part]  # type: ignore[assignment]
    return var._parameters, last


def _state(tensor: Tensor) -> tuple[int, torch.dtype, int]:
    """Differs when a tensor has moved or changed."""
    return tensor.data_ptr(), tensor.dtype, 0 if tensor.is_inference() else tensor._version
