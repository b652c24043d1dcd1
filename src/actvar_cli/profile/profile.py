"""The profile of a model: parameters, FLOPs counted on real sampling, and measured time; dense and compressed.

FLOPs are 2 x MACs of matrix products and convolutions, per image, sampled with classifier-free guidance
(both rows, or the one that has learned it).
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from statistics import median

import torch
from torch import Tensor

from actvar_cli.errors import ActvarError, InputError
from actvar_cli.model.config import Frozen
from actvar_cli.model.counters import PARTS, dense_macs
from actvar_cli.model.device import device_name
from actvar_cli.model.sampling import ActVAR, Setting, balanced_labels
from actvar_cli.profile.parts import Clock, Times, times
from actvar_cli.profile.timing import Measured, in_turn
from actvar_cli.profile.units import duration, percent, quantity
from actvar_cli.profile.work import Work, count_work, is_part, part_of
from actvar_cli.progress import Progress

SCOPE = "FLOPs = 2 x MACs of matrix products and convolutions; one image with classifier-free guidance"
"""What every FLOPs figure of a profile covers."""


class Mode(Frozen):
    """One way of running the model, dense or compressed. FLOPs are per image; densities by block, then by scale.

    ``transformer_flops`` is the model's own count, ``transformer_flops_fvcore`` is fvcore's and
    ``transformer_flops_torch`` that of torch's flop_counter, all of samplings under the same seed; ``difference`` and
    ``difference_torch`` say how far these two lie above the first, relative to it. ``modules`` is by fvcore, the
    ``tokenizer.`` ones included. An expert density is of the tokens that were computed. Seconds and
    images per second are of whole images, tokenizer included. ``times`` is there if it was asked for.
    """

    transformer_flops: float
    transformer_flops_fvcore: float
    difference: float
    transformer_flops_torch: float
    difference_torch: float
    tokenizer_flops: float
    image_flops: float
    parts: dict[str, float]
    scales: list[float]
    modules: dict[str, float]
    token_density: list[list[float]]
    expert_density: list[list[float]]
    seconds_per_image: float
    seconds_fastest: float
    seconds_slowest: float
    images_per_second: float
    peak_memory_bytes: int | None
    times: Times | None = None


class Profile(Frozen):
    """What a model costs. ``compressed`` and the comparisons are ``None`` for a model that runs dense.

    ``cost`` is compressed by dense FLOPs of the transformer alone, ``image_cost`` with the tokenizer's decoding;
    ``speedup`` is measured, ``promised_speedup`` what ``image_cost`` would give, ``efficiency`` their ratio. ``dtype``
    is the weights' type, ``product_dtype`` the one in which the blocks multiply there.
    """

    model: str
    device: str
    dtype: str
    product_dtype: str
    torch: str
    scope: str = SCOPE
    batch: int
    repeats: int
    seed: int
    budget: float | None
    threshold: float | None
    paired_scales: int = 0
    patch_nums: list[int]
    parameters: dict[str, int]
    tokenizer_parameters: int
    dense: Mode
    compressed: Mode | None
    cost: float | None
    image_cost: float | None
    speedup: float | None
    promised_speedup: float | None
    efficiency: float | None

    @property
    def setting(self) -> Setting:
        """What the compressed model left out."""
        return Setting(self.threshold, self.paired_scales)

    @property
    def types(self) -> str:
        """In words, such as ``float32``, or ``bfloat16 multiplied in float32``."""
        return self.dtype if self.dtype == self.product_dtype else f"{self.dtype} multiplied in {self.product_dtype}"

    def rows(self) -> list[tuple[str, str, str]]:
        """The table for a person: what, dense, compressed (empty for a dense model)."""
        modes = [self.dense, self.compressed] if self.compressed else [self.dense]

        def row(what: str, cells: list[str]) -> tuple[str, str, str]:
            return what, cells[0], cells[1] if len(cells) > 1 else ""

        table = [row("transformer, FLOPs per image", [quantity(m.transformer_flops) for m in modes])]
        for part in PARTS:
            if any(m.parts[part] for m in modes):
                table.append(row(f"  {part.replace('_', ' ')}", [quantity(m.parts[part]) for m in modes]))
        table += [
            row("tokenizer decoding, FLOPs", [quantity(m.tokenizer_flops) for m in modes]),
            row("whole image, FLOPs", [quantity(m.image_flops) for m in modes]),
            row("fvcore against own counter", [f"{100 * m.difference:+.3f} %" for m in modes]),
            row("torch against own counter", [f"{100 * m.difference_torch:+.3f} %" for m in modes]),
            row("time per image", [duration(m.seconds_per_image) for m in modes]),
            row("images per second", [quantity(m.images_per_second) for m in modes]),
        ]
        if self.dense.peak_memory_bytes is not None:
            table.append(row("peak memory", [quantity(m.peak_memory_bytes or 0, "B") for m in modes]))
        if self.cost and self.image_cost and self.speedup and self.efficiency:
            table += [
                ("cost, transformer", "100 %", percent(self.cost)),
                ("cost, whole image", "100 %", percent(self.image_cost)),
                ("speed-up, measured", "1.00", f"{self.speedup:.2f}"),
                ("efficiency (measured / promised)", "", f"{self.efficiency:.2f}"),
            ]
        return table


def parameters(model: ActVAR) -> dict[str, int]:
    """Parameters of each part of the transformer, and their ``total``; the tokenizer is apart."""
    counts = Counter({part: 0 for part in PARTS})
    for name, parameter in model.transformer.named_parameters():
        counts[part_of(name)] += parameter.numel()
    return {**counts, "total": counts.total()}


def profile(
    model: ActVAR,
    *,
    budget: float | None = None,
    batch: int,
    repeats: int = 5,
    seed: int = 0,
    measure: bool = False,
    progress: Progress | None = None,
) -> Profile:
    """Count and time ``model`` while it samples ``batch`` images of classes in turn, dense and at ``budget``.

    ``budget=None`` is how the model is set; one that is set dense, but has calibrated budgets, is profiled at the one
    it was made for. ``budget=1`` is dense alone. The work is counted on one sampling, the time is the median of
    ``repeats``; with ``measure`` that of every part and scale too.
    Raises InputError for a budget the model has not, ActvarError where the counts disagree.
    """
    if batch < 1 or repeats < 1:
        raise InputError(f"batch and repeats must be at least 1, not {batch} and {repeats}")
    progress = progress or Progress()
    labels = balanced_labels(batch, model.config.transformer.num_classes)
    setting = _setting(model, budget)
    settings = {"dense": Setting()} | ({"compressed": setting} if setting.threshold is not None else {})
    work: dict[str, Work] = {}
    with progress.task("counting FLOPs", len(settings)) as task:
        for name, cut in settings.items():
            with model.at(cut):
                work[name] = count_work(model, labels, seed)
            work[name].check()
            task.advance(note=name)
    _check_dense(work["dense"])
    measured = in_turn(
        {name: partial(_sample, model, cut, labels, seed) for name, cut in settings.items()},
        repeats=repeats,
        device=model.device,
        progress=progress,
    )
    clocks: dict[str, list[Clock]] = {name: [] for name in settings}
    if measure:
        in_turn(
            {name: partial(_sample_watched, model, cut, labels, seed, clocks[name]) for name, cut in settings.items()},
            repeats=repeats,
            device=model.device,
            progress=progress,
            label="measuring time by part",
        )
    dense = _mode(work["dense"], measured["dense"], clocks["dense"])
    compressed = (
        _mode(work["compressed"], measured["compressed"], clocks["compressed"]) if "compressed" in work else None
    )
    image_cost = compressed.image_flops / dense.image_flops if compressed else None
    speedup = dense.seconds_per_image / compressed.seconds_per_image if compressed else None
    return Profile(
        model=model.config.name,
        device=device_name(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        product_dtype=str(model.transformer.cache_dtype).removeprefix("torch."),
        torch=torch.__version__,
        batch=batch,
        repeats=repeats,
        seed=seed,
        budget=_budget(model, budget, setting),
        threshold=setting.threshold,
        paired_scales=setting.paired_scales,
        patch_nums=list(model.config.tokenizer.patch_nums),
        parameters=parameters(model),
        tokenizer_parameters=sum(p.numel() for p in model.tokenizer.parameters()),
        dense=dense,
        compressed=compressed,
        cost=compressed.transformer_flops / dense.transformer_flops if compressed else None,
        image_cost=image_cost,
        speedup=speedup,
        promised_speedup=1 / image_cost if image_cost else None,
        efficiency=speedup * image_cost if speedup and image_cost else None,
    )


def _setting(model: ActVAR, budget: float | None) -> Setting:
    """What to profile at; no threshold for dense alone."""
    if budget is None and (model.setting.threshold is not None or not model.budgets()):
        return model.setting
    try:
        return model.setting_for(budget or model.config.default_budget or model.budgets()[0])
    except ValueError as error:
        raise InputError(str(error)) from error


def _budget(model: ActVAR, asked: float | None, setting: Setting) -> float | None:
    """The budget asked for, or the calibrated one that has this setting."""
    if asked is not None or setting.threshold is None:
        return asked
    return next((d.budget for d in model.config.dials if (d.threshold, d.paired_scales) == setting), None)


def _sample(model: ActVAR, setting: Setting, labels: Tensor, seed: int, repeat: int) -> None:
    with model.at(setting):
        model.sample(labels, seed=seed + repeat)


def _sample_watched(
    model: ActVAR, setting: Setting, labels: Tensor, seed: int, clocks: list[Clock], repeat: int
) -> None:
    clock = Clock(model)
    with clock.watching():
        _sample(model, setting, labels, seed, repeat)
    clocks.append(clock)


def _check_dense(work: Work) -> None:
    """The dense run must be what the formula says, or every cost is a share of the wrong thing."""
    formula = dense_macs(work.counter.config, work.images)
    if work.counter.total != formula:
        raise ActvarError(f"the dense run took {work.counter.total} MACs by its counter, the formula says {formula}")


def _mode(work: Work, measured: Measured, clocks: list[Clock]) -> Mode:
    counter, images = work.counter, work.images
    transformer = 2 * counter.total / images
    tokenizer = 2 * work.tokenizer_macs / images
    modules = {name: macs for name, macs in work.transformer.items() if is_part(name)}
    modules |= {f"tokenizer.{name}": macs for name, macs in work.tokenizer.items() if "." not in name}
    seconds = [s / images for s in measured.seconds]
    return Mode(
        transformer_flops=transformer,
        transformer_flops_fvcore=2 * work.transformer_macs / images,
        difference=work.difference,
        transformer_flops_torch=2 * work.transformer_macs_torch / images,
        difference_torch=work.difference_torch,
        tokenizer_flops=tokenizer,
        image_flops=transformer + tokenizer,
        parts={part: 2 * macs for part, macs in counter.by_part().items()},
        scales=[2 * macs for macs in counter.by_scale()],
        modules={name: 2 * macs / images for name, macs in modules.items() if macs},
        token_density=counter.density("tokens"),
        expert_density=counter.density("experts"),
        seconds_per_image=median(seconds),
        seconds_fastest=min(seconds),
        seconds_slowest=max(seconds),
        images_per_second=1 / median(seconds),
        peak_memory_bytes=measured.peak_bytes,
        # Those before were to warm up.
        times=times(clocks[-len(seconds) :], images) if clocks else None,
    )
