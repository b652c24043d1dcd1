"""Which threshold costs what: predicted from scores, measured in real sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from actvar_cli.convert.recording import returning_memory, sampling_batch
from actvar_cli.model.config import EVERYTHING, Dial, ModelConfig
from actvar_cli.model.counters import WorkCounter, dense_macs, ffn_macs, router_macs
from actvar_cli.model.sampling import ActVAR, Setting, balanced_labels
from actvar_cli.progress import Progress

ROUGH_IMAGES, ROUGH_TOLERANCE, ROUGH_TRIALS = 24, 0.01, 10
"""Images that are sampled to find about which threshold costs what; how near to a budget, as a share of it, the cost of
one must be to be taken; and how many measurements that may take."""

SURE_IMAGES, SURE_TOLERANCE, SURE_TRIALS = 128, 0.002, 6
"""The same for what a threshold costs in the end: on few images, chance alone is half a percent."""

APART = 0.15
"""How far from two thresholds that were measured the next one is, as a share of what lies between them."""

NEAR = 0.005
"""How near to a budget, as a share of it, a cost must be to meet it."""

Cost = Callable[[float], float]
"""The cost at a threshold."""


def meets(cost: float, budget: float) -> bool:
    """Whether ``cost`` is that of ``budget``; nothing is left out there where that of everything is."""
    return abs(cost - budget) <= NEAR * budget


@torch.inference_mode()
def measured_cost(model: ActVAR, threshold: float, *, images: int, seed: int, paired_scales: int = 0) -> float:
    """Cost of free-running sampling at ``threshold``, counted by the model on ``images`` images."""
    counter = WorkCounter(model.config)
    labels = balanced_labels(images, model.config.transformer.num_classes)
    with model.at(Setting(threshold, paired_scales)), returning_memory(model):
        for i, part in enumerate(labels.split(sampling_batch(model))):
            model.sample_tokens(part, seed=seed + i, counter=counter)
    return counter.cost


def predicted_cost(config: ModelConfig, scores: Sequence[Tensor], scale: Tensor) -> Cost:
    """The cost at any threshold if every token scored its experts like those recorded.

    ``scores`` (n, E) of every block are of tokens at ``scale`` (n,). Token gates are not part of it. What this cannot
    know is how leaving experts out changes what later tokens look like.
    """
    patch_nums, dense = config.tokenizer.patch_nums, dense_macs(config)
    # Both rows of an image, so that the sum over the recorded pairs is the work of one image.
    tokens = torch.tensor([2.0 * pn * pn for pn in patch_nums])
    weight = (tokens / torch.bincount(scale.cpu(), minlength=len(patch_nums)).clamp_min(1))[scale.cpu()]
    offsets = torch.tensor(config.scale_offsets)[scale.cpu()]
    # A score counts against the threshold after its scale's offset.
    rising, order = torch.cat([(block.float().cpu() + offsets[:, None]).flatten() for block in scores]).sort()
    experts = [block.shape[1] for block in scores]
    work = [(weight * ffn_macs(config, 1, count)).repeat_interleave(count) for count in experts]
    pairs = torch.cat(work)[order].double()
    per_image = round(float(tokens.sum()))
    every = len(experts) * ffn_macs(config, per_image, 1)
    always = dense - every + sum(router_macs(config, per_image, count) for count in experts)
    # Scales of which no token was recorded count as the others do on average.
    above = np.append(pairs.flip(0).cumsum(0).flip(0).numpy() * every / float(pairs.sum()), 0.0)
    cuts = rising.numpy()

    def cost(threshold: float) -> float:
        return float((always + above[np.searchsorted(cuts, threshold, side="right")]) / dense)

    return cost


class CostCurve:
    """The cost by threshold: a ``guess``, or a straight line, corrected by what was measured in between.

    The thresholds lie in ``span``; cost falls as they rise.
    """

    def __init__(self, measure: Cost, span: tuple[float, float], guess: Cost | None) -> None:
        self.measure, self.span, self.guess = measure, span, guess or (lambda _: 0.0)
        self.seen: dict[float, float] = {}
        if guess is None:
            for end in span:
                self.cost(end)

    def cost(self, threshold: float) -> float:
        """The measured cost."""
        if threshold not in self.seen:
            self.seen[threshold] = self.measure(threshold)
        return self.seen[threshold]

    def at(self, threshold: float) -> float:
        """The expected cost."""
        if not self.seen:
            return self.guess(threshold)
        where = sorted(self.seen)
        errors = [self.seen[t] - self.guess(t) for t in where]
        return self.guess(threshold) + float(np.interp(threshold, where, errors))

    def reaches(self, budget: float) -> bool:
        """Whether a threshold can be expected to cost just ``budget``."""
        low, high = self.span
        return self.at(high) < budget < self.at(low)

    def solve(self, budget: float, apart: float = 0.0) -> float:
        """The threshold that is expected to cost ``budget``, kept ``apart`` from those measured around it."""
        low = max((t for t, c in self.seen.items() if c >= budget), default=self.span[0])
        high = min((t for t, c in self.seen.items() if t > low and c < budget), default=self.span[1])
        ends = low, high
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.at(middle) >= budget else (low, middle)
        margin = apart * (ends[1] - ends[0]) if all(end in self.seen for end in ends) else 0.0
        return min(max(low, ends[0] + margin), ends[1] - margin)

    def find(self, budget: float, tolerance: float, trials: int) -> float:
        """The measured threshold nearest to ``budget``, after so many more measurements as it takes to come near."""
        for _ in range(trials):
            # Apart, so that both sides close in where the curve is bent.
            if abs(self.cost(self.solve(budget, APART)) - budget) < tolerance * budget:
                break
        return min(self.seen, key=lambda t: abs(self.seen[t] - budget))


def calibrate_dials(
    model: ActVAR,
    budgets: Sequence[float],
    *,
    span: tuple[float, float],
    seed: int,
    progress: Progress,
    guess: Cost | None = None,
    images: int = SURE_IMAGES,
) -> tuple[Dial, ...]:
    """Find, for each budget that can be reached, the threshold at which real sampling costs just that.

    What costs about that, a few images tell, what just that, then ``images``; these few, they are all there is.
    ``span`` brackets the thresholds. With a ``guess``, which tells the cost before anything was measured, only the
    lowest, the highest and one between are measured, and the rest follows. Where one row has learned guidance, a budget
    that it costs with nothing left out gets that: what asking routers takes would have to be made up for by experts.
    """
    # Without one row, nothing left out is the dense model. All images cost the same.
    whole = measured_cost(model, EVERYTHING, images=1, seed=seed) if model.config.guidance else 1.0
    met = [Dial(budget=b, threshold=EVERYTHING, cost=whole) for b in budgets if meets(whole, b)]
    budgets = sorted({*budgets} - {dial.budget for dial in met})
    measured = budgets if guess is None else sorted({budgets[0], budgets[len(budgets) // 2], budgets[-1]})
    last = images, SURE_TOLERANCE, SURE_TRIALS if guess is None else 1
    rounds = [(ROUGH_IMAGES, ROUGH_TOLERANCE, ROUGH_TRIALS), last] if images > ROUGH_IMAGES else [last]
    curve = guess
    with progress.task("calibrating budgets", len(rounds) * len(measured)) as task:
        for sampled, tolerance, trials in rounds:
            costs, found = CostCurve(partial(measured_cost, model, images=sampled, seed=seed), span, curve), {}
            for budget in measured:
                if reached := costs.reaches(budget):
                    found[budget] = costs.find(budget, tolerance, trials)
                task.advance(note=f"{budget:g}" if reached else f"{budget:g} out of reach")
            curve = costs.at
    if guess is not None:
        found = {budget: costs.solve(budget) for budget in budgets if costs.reaches(budget)}
    dials = [Dial(budget=b, threshold=found[b], cost=costs.at(found[b])) for b in budgets if b in found]
    for dial in dials:
        # Where many tokens share a score, one threshold leaves all of them out, the next one none.
        if not meets(dial.cost, dial.budget):
            progress.say(f"a budget of {dial.budget:g} comes to a cost of {dial.cost:.3f}, the nearest that can be set")
    return tuple(sorted(dials + met, key=lambda dial: dial.budget))


def dials_of_both_rows(model: ActVAR, budget: float, *, seed: int, progress: Progress) -> tuple[Dial, ...]:
    """Dials above ``budget``: a ``model`` that has learned guidance begins more and more scales as the original.

    At the others nothing is left out: else, more work would not mean less divergence.
    """
    found, scales = [], model.config.beginnings
    with progress.task("calibrating both rows", len(scales)) as task:
        for paired in scales:
            # All images cost the same.
            cost = measured_cost(model, EVERYTHING, images=1, seed=seed, paired_scales=paired)
            if budget < (made := round(cost, 3)) < 1:
                found.append(Dial(budget=made, threshold=EVERYTHING, cost=cost, paired_scales=paired))
            task.advance()
    return tuple(found)
