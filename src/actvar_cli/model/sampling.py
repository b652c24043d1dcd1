"""Sampling images scale by scale, as published: classifier-free guidance, top-k, top-p, smoothing, seeds.

Source: VAR (arXiv 2404.02905), `autoregressive_infer_cfg` of the published model; random numbers are drawn in the same
order, so equal seeds give equal tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from actvar_cli.errors import ActvarError, InputError
from actvar_cli.model import graphs
from actvar_cli.model.config import EVERYTHING, ModelConfig
from actvar_cli.model.counters import WorkCounter
from actvar_cli.model.device import keep_memory
from actvar_cli.model.guidance import guidance_at, guide
from actvar_cli.model.noise import exponential_like
from actvar_cli.model.tokenizer import Tokenizer
from actvar_cli.model.var import VAR


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn: guidance strength, candidates kept (0: all), probability mass kept (0: all), smoothing.

    ``cfg=None`` is `ModelConfig.usual_cfg`.
    """

    cfg: float | None = None
    top_k: int = 0
    top_p: float = 0.0
    more_smooth: bool = False


@dataclass(frozen=True)
class Samples:
    """``images`` (B, C, S, S) in [0, 1] and their ``tokens`` (B, L)."""

    images: Tensor
    tokens: Tensor


def balanced_labels(count: int, num_classes: int) -> Tensor:
    """``count`` labels (count,) over all classes in turn, or over evenly spread classes where there are fewer."""
    index = torch.arange(count)
    return index % num_classes if count >= num_classes else index * num_classes // count


def paired_rows(model: ActVAR, labels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (2B,) and teacher-forcing input (2B, L - first, z) of the two rows that CFG computes for each image."""
    labels, var_input = single_rows(model, labels, tokens)
    no_class = torch.full_like(labels, model.config.transformer.num_classes)
    return torch.cat((labels, no_class)), var_input.repeat(2, 1, 1)


def single_rows(model: ActVAR, labels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The same of the one row, (B,) and (B, L - first, z), that a model computes which has learned guidance."""
    return labels, model.tokenizer.quantize.teacher_forcing_input(model.tokenizer.split(tokens.long()))


def check_classes(classes: Sequence[int], total: int) -> None:
    """Raise InputError where a class is not among the model's ``total``."""
    for label in classes:
        if not 0 <= label < total:
            raise InputError(f"class {label} does not exist: the model has the classes 0 to {total - 1}")


def rows_of(model: ActVAR, labels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that ``model`` computes for each image at a threshold: `single_rows` or `paired_rows`."""
    return (single_rows if model.config.guidance else paired_rows)(model, labels, tokens)


def filter_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set to minus infinity what is not among the ``top_k`` largest, then what lies outside the mass ``top_p``."""
    if top_k > 0:
        kth = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values.amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p > 0:
        rising, order = logits.sort(dim=-1)
        drop = rising.softmax(-1).cumsum(-1) <= 1 - top_p
        drop[..., -1:] = False
        logits = logits.masked_fill(drop.scatter(-1, order, drop), -torch.inf)
    return logits


def draw(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """One token per position: (B, l, V) to (B, l)."""
    probabilities = logits.softmax(-1)
    finite, wrong = (
        probabilities.sum().isfinite(),
        "a token's probabilities are not finite: the model computes infinities or no numbers",
    )
    if logits.is_cuda:
        # Without waiting for it.
        torch._assert_async(finite, wrong)
    elif not finite:
        raise ActvarError(wrong)
    # What torch.multinomial does, which reads all of it three times more.
    noise = exponential_like(probabilities, generator)
    return torch.div(probabilities, noise, out=noise).argmax(-1)


def gumbel_mixture(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Gumbel-softmax weights (B, l, V) over the codes (arXiv 1611.01144)."""
    gumbel = -exponential_like(logits, generator).log()
    return ((logits + gumbel) / temperature).softmax(-1)


class Setting(NamedTuple):
    """What a model leaves out: nothing where ``threshold`` is ``None``, else what scores no more than that.

    At the first ``paired_scales`` nothing is, and both rows are computed, though one has learned guidance.
    """

    threshold: float | None = None
    paired_scales: int = 0


class ActVAR(nn.Module):
    """A transformer and its tokenizer, ready to sample; what `actvar_cli.load` returns.

    Its ``setting`` is the cost dial, `set_budget` the usual way to turn it.
    """

    def __init__(self, config: ModelConfig, transformer: VAR, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.setting = Setting()
        self.shares_weights = False
        """Whether a conversion has changed the places of its neurons, and another one would those of what that made."""

    @property
    def threshold(self) -> float | None:
        """That of the setting; to set it means to begin no scale as the original does."""
        return self.setting.threshold

    @threshold.setter
    def threshold(self, threshold: float | None) -> None:
        self.setting = Setting(threshold)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.pos_start.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the blocks' weights (`precision.set_dtype`)."""
        return self.transformer.dtype

    def configure(self, **changes: Any) -> None:
        """Change fields of the config, which the transformer reads too."""
        self.config = self.transformer.config = self.config.model_copy(update=changes)

    def budgets(self) -> list[float]:
        """Budgets that were calibrated, rising."""
        return sorted(d.budget for d in self.config.dials)

    @contextmanager
    def at(self, setting: Setting) -> Iterator[None]:
        """The model as it is at ``setting``, and afterwards as it was, whatever was set inside."""
        before, self.setting = self.setting, setting
        try:
            yield
        finally:
            self.setting = before

    def set_budget(self, budget: float) -> None:
        """Work at ``budget``; see `setting_for`."""
        self.setting = self.setting_for(budget)

    def setting_for(self, budget: float) -> Setting:
        """What it takes to work at ``budget`` (share of the dense model's FLOPs); ``1.0`` is dense.

        Between two calibrated budgets the threshold is interpolated, if they differ in that alone and something is left
        out at both; else it is the lower one that holds. Raises ValueError outside the calibrated range; but a model
        that has learned guidance does its most at any budget above.
        """
        if budget == 1.0:
            return Setting()
        dials = sorted(self.config.dials, key=lambda d: d.budget)
        if not dials:
            raise ValueError(f"{self.config.name} is dense: it has no experts to leave out, convert it first")
        low, high = dials[0].budget, dials[-1].budget
        if self.config.guidance and high < budget < 1:
            budget = high
        if not low <= budget <= high:
            raise ValueError(f"budget {budget:g} is outside the calibrated range {low:g} to {high:g} (or 1 for dense)")
        below = next(dial for dial in reversed(dials) if dial.budget <= budget)
        above = next((dial for dial in dials if dial.budget > budget), None)
        if not above or above.paired_scales != below.paired_scales or above.threshold <= EVERYTHING:
            return Setting(below.threshold, below.paired_scales)
        share = (budget - below.budget) / (above.budget - below.budget)
        return Setting(below.threshold + share * (above.threshold - below.threshold), below.paired_scales)

    @torch.inference_mode()
    def sample(
        self,
        labels: Tensor | list[int],
        *,
        seed: int | None = None,
        settings: SamplingSettings | None = None,
        counter: WorkCounter | None = None,
    ) -> Samples:
        """Sample one image per label (B,).

        ``seed=None`` draws from torch's global generator. ``counter`` collects the work done.
        """
        keep_memory(self.device)
        return sample(self, self._labels(labels), settings or SamplingSettings(), self._generator(seed), counter)

    @torch.inference_mode()
    def sample_tokens(
        self,
        labels: Tensor | list[int],
        *,
        seed: int | None = None,
        settings: SamplingSettings | None = None,
        counter: WorkCounter | None = None,
        logits: list[Tensor] | None = None,
    ) -> Tensor:
        """The tokens (B, L) of `sample`, without decoding them.

        ``logits`` collects those after guidance, (B, l, V) of each scale.
        """
        settings = settings or SamplingSettings()
        return sample_latent(self, self._labels(labels), settings, self._generator(seed), counter, logits)[1]

    def _labels(self, labels: Tensor | list[int]) -> Tensor:
        made = torch.as_tensor(labels, dtype=torch.long)
        # What is on a device already is not fetched to be looked at: that would make it wait.
        if made.device.type == "cpu":
            check_classes(made.tolist(), self.config.transformer.num_classes)
        return made.to(self.device)

    def _generator(self, seed: int | None) -> torch.Generator | None:
        return None if seed is None else torch.Generator(self.device).manual_seed(seed)

    def forward(self, labels: Tensor) -> Tensor:
        """Images (B, C, S, S) for labels (B,) with the default settings: what profilers trace."""
        return sample(self, labels, SamplingSettings(), None, None).images


def sample(
    model: ActVAR,
    labels: Tensor,
    settings: SamplingSettings,
    generator: torch.Generator | None,
    counter: WorkCounter | None,
) -> Samples:
    """See `ActVAR.sample`."""
    latent, tokens = sample_latent(model, labels, settings, generator, counter)
    return Samples(model.tokenizer.decode_latent(latent).add(1).mul(0.5), tokens)


class _Rows:
    """The rows of a sampling: two for each image, one of them without a class, or one that has learned guidance.

    With ``paired_scales`` there are two at first, computed as the original does, and one goes on.
    """

    def __init__(self, model: ActVAR, labels: Tensor, counter: WorkCounter | None) -> None:
        self.model, self.labels, self.counter = model, labels, counter
        self.sizes = [pn * pn for pn in model.config.tokenizer.patch_nums]
        self.learned = model.config.guidance if model.threshold is not None else None
        self.one_from = model.setting.paired_scales if self.learned else len(self.sizes)
        no_class = torch.full_like(labels, model.config.transformer.num_classes)
        self.start = model.transformer.class_emb(torch.cat((labels, no_class)))
        self.positions = model.transformer.positions().split(self.sizes, dim=1)
        self.walk: graphs.Pass | None = None

    def _begin(self, scale: int, cfg: float) -> graphs.Pass:
        """The pass that starts with ``scale``, after the one before it if there is one; ``cfg`` as in `logits`."""
        var, before, threshold = self.model.transformer, self.walk, self.model.threshold
        if scale < self.one_from:
            cond, threshold = self.start, None if self.learned else threshold
        else:
            cond = var.guidance.conditions(self.start[: len(self.labels)], self.labels)
            if before and self.learned and self.learned.context:
                var.guided_context.guide(before.cache, cfg / self.learned.cfg)
        walk = graphs.begin(var, cond, threshold, self.counter, before)
        if self.counter:
            self.counter.begin_image(2 * len(self.labels), 0 if before else len(self.labels))
        return walk

    def logits(self, seen: Tensor | None, scale: int, cfg: float) -> Tensor:
        """Logits (B, l, V) after guidance of strength ``cfg`` at the last scale.

        ``seen`` (B, l, z) is what ``scale`` reads of those before it, ``None`` at the first. Where there is one row,
        another call may write over them.
        """
        var, images, size = self.model.transformer, len(self.labels), self.sizes[scale]
        rows = 2 if scale < self.one_from else 1
        if seen is None:
            x = self.start[: rows * images].unsqueeze(1) + var.pos_start + self.positions[scale]
        else:
            # What watches a sampling takes this for the beginning of a scale.
            x = (var.word_embed(seen) + self.positions[scale]).repeat(rows, 1, 1)
        if self.walk is None or scale == self.one_from:
            self.walk = self._begin(scale, cfg)
        if self.counter:
            self.counter.frame(scale, 2 * images, rows * images * size, images * size if scale else 0)
        guidance = guidance_at(scale, len(self.sizes), cfg)
        if rows == 2:
            return guide(self.walk.logits(x, scale), guidance)
        assert self.learned
        return self.walk.logits(x, scale, guidance / self.learned.cfg)


@torch.no_grad()
def sample_latent(
    model: ActVAR,
    labels: Tensor,
    settings: SamplingSettings,
    generator: torch.Generator | None,
    counter: WorkCounter | None,
    collected: list[Tensor] | None = None,
    given: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The walk over the scales: what the decoder reads, (B, z, S', S'), and the tokens (B, L).

    ``collected`` gets the logits (B, l, V) of each scale, after guidance; ``given`` (B, L) are tokens not to be drawn.
    """
    quantizer, patch_nums = model.tokenizer.quantize, model.config.tokenizer.patch_nums
    batch, last, rows = len(labels), len(patch_nums) - 1, _Rows(model, labels, counter)
    cfg = model.config.usual_cfg if settings.cfg is None else settings.cfg
    f_hat = rows.start.new_zeros(batch, quantizer.config.z_channels, patch_nums[-1], patch_nums[-1])
    tokens: list[Tensor] = []
    end = 0
    for scale, pn in enumerate(patch_nums):
        here = slice(end, end := end + pn * pn)
        logits = rows.logits(quantizer.next_input(f_hat, scale) if scale else None, scale, cfg)
        if collected is not None:
            collected.append(logits.clone() if scale >= rows.one_from else logits)
        logits = filter_logits(logits, settings.top_k, settings.top_p)
        index = draw(logits, generator) if given is None else given[:, here]
        tokens.append(index)
        if settings.more_smooth:
            temperature = max(0.27 * (1 - 0.95 * scale / last), 0.005)
            mixture = gumbel_mixture(logits * (1 + scale / last), temperature, generator)
            h = (mixture @ quantizer.embedding.weight).transpose(1, 2).reshape(batch, -1, pn, pn)
        else:
            h = quantizer.lookup(index, scale)
        f_hat = f_hat + quantizer.contribution(h, scale)
    return f_hat, torch.cat(tokens, dim=1)
