"""How a step is taken: by AdamW, or the matrices of attention and FFNs by Muon.

Source: Muon (Jordan et al. 2024); steps as large as AdamW's, for which one learning rate does, arXiv 2502.16982.
`torch.optim.Muon` computes in bfloat16, for which CPUs without it take many times as long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import groupby

import torch
from torch import Tensor, nn

from actvar_cli.model.device import fast_bf16

MATRICES = (".attn.mat_qkv.weight", ".attn.proj.weight", ".ffn.fc1.weight", ".ffn.fc2.weight")
"""What the names of matrices end with that every token goes through, and that most of a block's parameters are in."""

MOMENTUM, SIZE = 0.95, 0.2
"""How much of earlier gradients is kept, and the root mean square of an element's change, by the learning rate."""

QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
"""The polynomial in a matrix's singular values that brings them near 1, and how often it is applied."""


def learning_rate(step: int, steps: int) -> float:
    """Factor of the learning rate: linear over the first tenth, then a cosine down to nothing."""
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix (m, n) of the same singular vectors whose singular values are all about 1 (between 0.7 and 1.2)."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    a, b, c = QUINTIC
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are made `orthogonal`: no direction of a matrix learns at the cost of the others."""

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Change every parameter that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - MOMENTUM)
                ahead = torch.lerp(weight.grad, state["momentum"], MOMENTUM)
                weight.add_(orthogonal(ahead), alpha=-group["lr"] * SIZE * math.sqrt(max(weight.shape)))


class Optimiser:
    """AdamW over ``parameters`` for ``steps`` steps; ``kind`` "muon" takes those of the `MATRICES` by `Muon`.

    ``precision`` is that of `DistillSettings`; what gives the loss is computed inside ``autocast``. ``share`` is the
    learning rate of the parameter of a name, by ``lr``.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        lr: float,
        steps: int,
        precision: str,
        device: torch.device,
        kind: str = "adamw",
        share: Callable[[str], float] = lambda name: 1.0,
    ) -> None:
        mixed = precision == "bf16" or (precision == "auto" and fast_bf16(device))
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=mixed)
        self.steps = steps
        self.parameters = dict(parameters)

        def groups(names: list[str]) -> list[dict[str, object]]:
            return [
                {"params": [parameters[name] for name in same], "initial_lr": rate * lr}
                for rate, same in groupby(sorted(names, key=share), key=share)
            ]

        matrices = [name for name in parameters if kind == "muon" and name.endswith(MATRICES)]
        others = [name for name in parameters if name not in matrices]
        self.parts: list[torch.optim.Optimizer] = []
        if others:
            self.parts.append(torch.optim.AdamW(groups(others), lr=lr, betas=(0.9, 0.98), weight_decay=0.0))
        if matrices:
            self.parts.append(Muon(groups(matrices), {"lr": lr}))
        taken = {weight: part for part in self.parts for group in part.param_groups for weight in group["params"]}
        self.states = {name: taken[parameter].state for name, parameter in parameters.items()}
        """Where the part that takes a parameter's steps keeps what it needs to know of earlier ones."""

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """What is kept of the gradients so far, by the parameter's name and then its own; empty before the first."""
        states = {name: self.states[name].get(parameter) for name, parameter in self.parameters.items()}
        return {name: state for name, state in states.items() if state}

    def adopt(self, moments: Mapping[str, dict[str, Tensor]]) -> None:
        """Go on with what another optimiser kept of the gradients of parameters of the same names."""
        for name in self.parameters.keys() & moments.keys():
            self.states[name][self.parameters[name]] = moments[name]

    def step(self, loss: Tensor, number: int) -> Tensor:
        """Take step ``number``, counted from 0, down the gradient of ``loss``; returns the gradient's norm."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["initial_lr"] * learning_rate(number, self.steps)
            part.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        # A step whose gradient explodes is left out: one bad batch must not undo the routers.
        if torch.isfinite(norm):
            for part in self.parts:
                part.step()
        return norm
