"""Which neuron goes to which expert: groups of equal size.

Source: MoEfication (arXiv 2110.01786), section 3.2, for balanced k-means on the rows of the first layer and for
co-activation; that important and unimportant neurons are kept apart is ours (docs/method.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from actvar_cli.convert.recording import FFNRecord
from actvar_cli.convert.settings import Method
from actvar_cli.model.experts import FFN

WATCHED = 1024
"""Tokens on which neurons are watched."""


def balanced_assignment(distance: Tensor) -> Tensor:
    """Give each of N rows one of E groups of N / E, nearest first; ``distance`` (N, E) to labels (N,).

    In rounds: every row without a group asks for the nearest one that is not full, and a group takes the nearest of
    those that ask. At least one group fills up or takes all who asked in a round, so E rounds are enough.
    """
    n, groups = distance.shape
    capacity = torch.full((groups,), n // groups)
    labels = torch.full((n,), -1)
    distance = distance.clone()
    while (free := (labels < 0).nonzero().squeeze(1)).numel():
        distance[:, capacity == 0] = torch.inf
        nearest, choice = distance[free].min(1)
        for g in choice.unique().tolist():
            asking = (choice == g).nonzero().squeeze(1)
            taken = asking[nearest[asking].argsort(stable=True)[: int(capacity[g])]]
            labels[free[taken]] = g
            capacity[g] -= len(taken)
    return labels


def balanced_kmeans(rows: Tensor, groups: int, generator: torch.Generator, iterations: int = 25) -> Tensor:
    """Labels (N,) of ``groups`` equally large clusters of the l2-normalised ``rows`` (N, C)."""
    x = F.normalize(rows.float(), dim=1)
    # k-means++: each next centre is drawn with probability proportional to the squared distance to the nearest one.
    centres = x[torch.randint(len(x), (1,), generator=generator)]
    for _ in range(groups - 1):
        far = torch.cdist(x, centres).min(1).values.square().clamp_min(1e-12)
        centres = torch.cat((centres, x[torch.multinomial(far, 1, generator=generator)]))
    labels = torch.full((len(x),), -1)
    for _ in range(iterations):
        new = balanced_assignment(torch.cdist(x, centres))
        if torch.equal(new, labels):
            break
        labels = new
        centres = torch.stack([x[labels == g].mean(0) for g in range(groups)])
    return labels


def coactivation(hidden: Tensor) -> Tensor:
    """Neurons by what makes them active, (hidden, n), from their activations ``hidden`` (n, hidden).

    The cosine of two rows is how often, and how strongly, two neurons are active together.
    """
    return hidden.float().abs().T.contiguous()


def importance(hidden: Tensor, ffn: FFN, record: FFNRecord) -> Tensor:
    """What the output would miss without each neuron, (hidden,), by its activations (n, hidden) on ``record``'s tokens.

    It is the energy of the neuron's deviation from its mean, after g2, relative to the block's output, as in the
    routers' scores.
    """
    deviation = hidden.float() - hidden.float().mean(0)
    heard = record.gain.float().square() @ ffn.fc2.weight.float().square()
    return (deviation.square() * heard / record.energy[:, None]).mean(0)


def magnitude(ffn: FFN) -> Tensor:
    """How large a neuron's weights are, (hidden,): the product of the norms of what it reads and what it writes."""
    size: Tensor = ffn.fc1.weight.float().norm(dim=1) * ffn.fc2.weight.float().norm(dim=0)
    return size


@torch.no_grad()
def group_neurons(
    ffn: FFN,
    record: FFNRecord,
    experts: int,
    method: Method,
    generator: torch.Generator,
    sensitivity: Tensor | None = None,
) -> Tensor:
    """A permutation (hidden,), on the CPU, that lines the neurons of ``ffn`` up expert by expert.

    ``record`` is what the FFN did: its tokens are those on which neurons are watched. With ``tiers`` the more important
    half of the experts comes first. With ``magnitude`` the first expert has the largest neurons, and so on; with
    ``taylor`` those of the highest ``sensitivity`` (hidden,).
    """
    hidden = len(ffn.fc1.weight)
    if method == "contiguous":
        return torch.arange(hidden)
    if method == "random":
        return torch.randperm(hidden, generator=generator)
    if method == "magnitude":
        return magnitude(ffn).argsort(descending=True, stable=True).cpu()
    if method == "taylor":
        assert sensitivity is not None
        return sensitivity.argsort(descending=True, stable=True).cpu()
    if method == "kmeans":
        return balanced_kmeans(ffn.fc1.weight.cpu(), experts, generator).argsort(stable=True)
    record = record.some(WATCHED)
    activations = ffn.hidden(record.h)
    rows = coactivation(activations).cpu()
    if method == "coactivation":
        return balanced_kmeans(rows, experts, generator).argsort(stable=True)
    falling = importance(activations, ffn, record).argsort(descending=True, stable=True).cpu()
    upper = (experts + 1) // 2
    tiers = falling.tensor_split([hidden // experts * upper])
    return torch.cat(
        [
            tier[balanced_kmeans(rows[tier], count, generator).argsort(stable=True)]
            for tier, count in zip(tiers, (upper, experts - upper), strict=True)
        ]
    )
