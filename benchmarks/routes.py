"""Routes as a trained student takes them, in a model of another shape with random weights: what time is measured on.

Router and token gate are there and do their work. What they decide is drawn from the scores of `var-fashion-actvar`, at
the threshold at which the model at hand has the cost that was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import ceil

import torch
from dense_speed import randomise
from thinner import cost_by
from torch import Tensor, nn

import actvar_cli
from actvar_cli.convert.calibration import meets
from actvar_cli.convert.convert import router_dim, with_experts
from actvar_cli.convert.recording import decisions_at, draw_samples
from actvar_cli.convert.settings import ConvertSettings
from actvar_cli.distill.settings import TokensStage
from actvar_cli.distill.token_stage import add_token_gates
from actvar_cli.model.block import Decisions
from actvar_cli.model.config import EVERYTHING, ExpertsConfig, GuidanceConfig, ModelConfig
from actvar_cli.model.counters import WorkCounter
from actvar_cli.model.precision import set_dtype
from actvar_cli.model.rebuild import rebuilt
from actvar_cli.model.sampling import ActVAR, Setting
from actvar_cli.model.tokenizer import Tokenizer
from actvar_cli.model.var import VAR
from actvar_cli.progress import Progress

STUDENT = "var-fashion-actvar"

STEP = 8
"""Neurons by which FFNs are made narrower: a product of other widths takes longer."""

BUDGET = 0.4
"""Where it decides: its scores are of what its blocks see when they leave out what they do there."""

Scores = dict[tuple[int, int], Tensor]
"""By block and scale: (n, E) of a router, (n, 1) of a token gate; what exceeds the threshold is computed."""


class Drawn(nn.Module):
    """A router or a token gate that does its work, and then decides as was ``drawn``, scale by scale, in turn."""

    alike = False

    def __init__(self, real: nn.Module) -> None:
        super().__init__()
        self.real, self.calls = real, 0
        self.drawn: list[Tensor] = []

    def forward(self, x: Tensor, *scale: int, above: float) -> Tensor:
        """Decisions of the shape that those of ``real`` about ``x`` have."""
        made = self.real(x, *scale, above=above)
        drawn = self.drawn[self.calls % len(self.drawn)]
        self.calls += 1
        return drawn.flatten()[: made.numel()].view_as(made)


def random_of(config: ModelConfig, device: torch.device) -> ActVAR:
    """A model of ``config`` with random weights."""
    with device:
        model = ActVAR(config, VAR(config), Tokenizer(config.tokenizer)).eval()
    randomise(model.transformer, torch.Generator(device).manual_seed(0))
    return model


def experts_in(dense: ActVAR) -> ActVAR:
    """``dense`` with experts in every FFN behind a router, as `actvar convert` makes them; it shares its weights."""
    width = router_dim(dense.config.transformer.embed_dim)
    return _like(dense, with_experts(dense, ExpertsConfig(num_experts=ConvertSettings().experts, router_dim=width)))


def one_row_in(dense: ActVAR) -> ActVAR:
    """``dense`` with experts, and one row for each image that has learned guidance, as the student has."""
    model, guidance = experts_in(dense), GuidanceConfig(cfg=1.5, context=True)
    return _like(dense, rebuilt(model, model.config.model_copy(update={"guidance": guidance})))


def narrower_in(dense: ActVAR, cost: float) -> ActVAR:
    """What is left of ``dense`` where the same neurons are pruned for every token: random weights of that shape.

    One row for each image has learned guidance; FFNs are alike, and as wide as ``cost`` allows.
    """
    for hidden in range(dense.transformer.stack[0].ffn.fc1.out_features - STEP, 0, -STEP):
        arch = dense.config.transformer.model_copy(update={"mlp_ratio": hidden / dense.config.transformer.embed_dim})
        update = {"transformer": arch, "guidance": GuidanceConfig(cfg=1.5)}
        config = dense.config.model_copy(update=update)
        if cost_by(config, dense.config) <= cost:
            break
    else:
        raise SystemExit(f"no FFN is narrow enough to cost {cost:g}")
    model = _like(dense, random_of(config, dense.device))
    model.setting = Setting(EVERYTHING)
    return model


def gates_in(dense: ActVAR) -> ActVAR:
    """``dense`` with token gates for whole blocks on the last three scales, and nothing else."""
    none = ExpertsConfig(num_experts=ConvertSettings().experts, router_dim=1, router="none")
    return _like(dense, add_token_gates(with_experts(dense, none), TokensStage(skips="block")))


def _like(dense: ActVAR, model: ActVAR) -> ActVAR:
    """``model`` on the device and in the type of ``dense``."""
    return set_dtype(model.to(dense.device), str(dense.dtype).removeprefix("torch."))


def student_scores(config: ModelConfig, rows: int, seed: int, device: torch.device) -> Scores:
    """The student's scores of its experts, for ``rows`` sequences of a model of ``config``.

    Its blocks and scales are stretched to those of ``config``. Every token gets those of one of the student's.
    """
    student, made = _student(seed)
    sizes = [pn * pn for pn in student.config.tokenizer.patch_nums]
    found: Scores = {}
    generator = torch.Generator().manual_seed(seed)
    for block, scale, tokens in _places(config, rows):
        theirs = _stretched(scale, len(config.tokenizer.patch_nums), len(sizes))
        scores = made[_stretched(block, config.transformer.depth, len(made))].scores
        assert scores is not None
        here = scores.split(sizes, dim=1)[theirs].flatten(0, 1) + student.config.scale_offsets[theirs]
        found[block, scale] = here[torch.randint(len(here), (tokens,), generator=generator)].to(device)
    return found


@cache
def _student(seed: int) -> tuple[ActVAR, list[Decisions]]:
    """The student, and what it decides about images of its own, at a budget where it leaves much out."""
    student = actvar_cli.load(STUDENT, budget=BUDGET)
    assert student.threshold is not None
    samples = draw_samples(student, 64, seed=seed, progress=Progress())
    return student, decisions_at(student, samples, student.threshold, len(samples))


def even_scores(config: ModelConfig, rows: int, seed: int, device: torch.device) -> Scores:
    """Scores of token gates that keep the same share of tokens in every block, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    return {
        (block, scale): torch.rand(tokens, 1, generator=generator).to(device)
        for block, scale, tokens in _places(config, rows)
    }


def _places(config: ModelConfig, rows: int) -> list[tuple[int, int, int]]:
    """Blocks, scales, and how many tokens ``rows`` sequences have there."""
    sizes = [rows * pn * pn for pn in config.tokenizer.patch_nums]
    return [(block, scale, n) for block in range(config.transformer.depth) for scale, n in enumerate(sizes)]


def _stretched(index: int, of: int, to: int) -> int:
    """Where the middle of the ``index``-th of ``of`` equal parts lies among ``to`` parts."""
    return ceil((index + 0.5) / of * to) - 1


def setting_for(config: ModelConfig, scores: Scores, images: int, cost: float) -> Setting:
    """The setting at which a model of ``config`` costs ``cost`` when its tokens have these scores.

    One row spends what it cannot cost as the student does: the most scales in both rows that are not too much. Where it
    costs just that with nothing left out, nothing is.
    """
    if config.guidance:
        if meets(_cost(config, scores, images, EVERYTHING), cost):
            return Setting(EVERYTHING)
        for paired in reversed(config.beginnings):
            if _cost(config, scores, images, EVERYTHING, paired) <= cost:
                return Setting(EVERYTHING, paired)
    low, high = min(float(s.min()) for s in scores.values()), max(float(s.max()) for s in scores.values())
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if _cost(config, scores, images, middle) < cost else (middle, high)
    return Setting((low + high) / 2)


def _cost(config: ModelConfig, scores: Scores, images: int, threshold: float, paired: int = 0) -> float:
    """What the counter would say; what is the same in every sampling is counted once."""
    counter, length = WorkCounter(config), 0
    counter.begin_image(2 * images * (2 if paired else 1), images)
    for scale, pn in enumerate(config.tokenizer.patch_nums):
        tokens, length = (2 if scale < paired else config.rows) * images * pn * pn, length + pn * pn
        counter.frame(scale, 2 * images, tokens, images * pn * pn if scale else 0)
        for block in range(config.transformer.depth):
            on, kept = scores[block, scale][:tokens] > threshold, tokens
            gated = config.token_gate and scale in config.token_gate.scales_of(block)
            if gated and threshold > EVERYTHING:
                counter.gate(block, scale, on)
                kept = int(on.sum())
            counter.attention(block, scale, kept, tokens - kept, length)
            counter.experts(block, scale, kept, None if config.token_gate or threshold == EVERYTHING else on)
    return counter.cost


def decide(model: ActVAR, samplings: Sequence[Scores], images: int, cost: float) -> None:
    """Let ``model``, from one of the above, decide by whether scores exceed the threshold of `setting_for`.

    Those of ``samplings`` serve for one sampling each, in turn.
    """
    setting = setting_for(model.config, samplings[0], images, cost)
    assert setting.threshold is not None
    if setting.threshold == EVERYTHING:
        model.setting = setting
        return
    part = "token_gate" if model.config.token_gate else "router"
    for block in model.transformer.stack:
        decider = Drawn(getattr(block, part))
        scales = block.gated_scales if model.config.token_gate else range(len(model.config.tokenizer.patch_nums))
        decider.drawn = [scores[block.index, scale] > setting.threshold for scores in samplings for scale in scales]
        setattr(block, part, decider)
    model.threshold = 0.0
