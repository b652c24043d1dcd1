"""Small regressions that give router, token gate and reconstruction their first weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from actvar_cli.model.block import Record
from actvar_cli.model.token_gate import Reconstruction


def relative_energy(difference: Tensor, reference: Tensor) -> Tensor:
    """Log of ``|difference|^2 / |reference|^2`` over the last axis: what a score of router and gate means."""
    return log_ratio(difference.square().sum(-1), reference.square().sum(-1))


def log_ratio(energy: Tensor, reference: Tensor) -> Tensor:
    """Log of ``energy / reference``, which are squared norms."""
    return (energy / reference.clamp_min(1e-12)).clamp_min(1e-12).log()


def fit_perceptron(net: nn.Module, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> float:
    """Fit a router or gate to ``targets`` (N, ...) from ``inputs`` (N, C) by least squares; returns R^2.

    ``net`` has layers ``fc1`` and ``fc2``. The output bias starts at the targets' mean, so that training only has to
    learn what varies.
    """
    first, second = net.get_submodule("fc1"), net.get_submodule("fc2")
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    spread = targets - targets.mean(0)
    with torch.no_grad():
        first.weight.copy_(torch.randn(first.weight.shape, generator=generator) * first.in_features**-0.5)
        first.bias.zero_()
        second.weight.zero_()
        second.bias.copy_(targets.mean(0).reshape(second.bias.shape))
    steps = 240
    opt = torch.optim.Adam(net.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    net.requires_grad_(True)
    with torch.enable_grad():
        for _ in range(steps):
            index = torch.randint(len(inputs), (512,), generator=generator).to(inputs.device)
            loss = (net(inputs[index]) - targets[index]).square().mean()
            opt.zero_grad(set_to_none=True)
            loss.backward()
            opt.step()
            schedule.step()
    with torch.no_grad():
        return float(1 - (net(inputs) - targets).square().mean() / spread.square().mean())


@torch.no_grad()
def fit_reconstruction(net: Reconstruction, record: Record) -> float:
    """Fit ``net`` to the updates of ``record`` in closed form; returns the share of their energy that it explains."""
    rest = record.update
    if net.reads_known:
        x, y = record.known - record.known.mean(0), rest - rest.mean(0)
        net.gain.copy_((x * y).sum(0) / x.square().sum(0).clamp_min(1e-12))
        rest = rest - net.gain * record.known
    if net.by_rank:
        fit_low_rank(net, record.h, rest)
    elif net.bias is not None:
        net.bias.copy_(rest.mean(0))
    error = (net(record.h, record.known) - record.update).square().sum()
    return float(1 - error / record.update.square().sum().clamp_min(1e-12))


@torch.no_grad()
def fit_low_rank(net: Reconstruction, h: Tensor, update: Tensor, ridge: float = 1e-3) -> None:
    """Reduced-rank ridge regression of ``update`` (N, C) on ``h`` (N, C).

    The ridge solution, projected on the leading right singular vectors of its fitted values, is the best map of that
    rank (Izenman 1975).
    """
    # On the CPU: not every device has float64.
    x, y = h.cpu().double(), update.cpu().double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    full = torch.linalg.solve(gram, x.T @ y)
    fitted = full.T @ (x.T @ x) @ full
    leading = torch.linalg.eigh(fitted).eigenvectors[:, -net.down.out_features :]
    down = (full @ leading).T
    # The two factors are scaled to equal size, so that one learning rate suits both.
    size = (leading.norm() / down.norm().clamp_min(1e-12)).sqrt()
    net.down.weight.copy_((down * size).float())
    net.up.weight.copy_((leading / size).float())
    net.up.bias.copy_((y_mean - x_mean @ full @ leading @ leading.T).float())
