"""A student beside its teacher under the same seeds: distance to real pictures, accuracy, agreement, cost, time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from actvar_cli.errors import InputError
from actvar_cli.evaluate.agreement import AgreementSums, add_agreement
from actvar_cli.evaluate.distance import frechet_distance, moments
from actvar_cli.evaluate.images import to_uint8
from actvar_cli.evaluate.reference import CLASS_NAMES, FEATURE_NETWORK, Reference, load_reference, serves
from actvar_cli.model.cache import images_together
from actvar_cli.model.config import Frozen, ModelConfig
from actvar_cli.model.counters import WorkCounter, dense_macs
from actvar_cli.model.device import device_name, synchronise
from actvar_cli.model.sampling import ActVAR, Samples, SamplingSettings, Setting, balanced_labels
from actvar_cli.progress import Progress

AGREEMENT_IMAGES = 1000
"""Images of the teacher that the agreement is measured on, at most: every one has all its tokens compared."""

FEW_IMAGES = 1000
"""Below this many, a Frechet distance is mostly the bias of its sample size."""


class Quality(Frozen):
    """One model's pictures. ``distance`` and accuracies are ``None`` where there is no feature network.

    ``cost`` is the share of the dense teacher's transformer's FLOPs, counted on this very sampling.
    """

    name: str
    threshold: float | None
    paired_scales: int = 0
    cost: float
    seconds_per_image: float
    distance: float | None
    accuracy: float | None
    accuracy_by_class: dict[str, float] | None

    @property
    def setting(self) -> Setting:
        """What the model left out."""
        return Setting(self.threshold, self.paired_scales)


class Agreement(Frozen):
    """How alike student and teacher are.

    On ``images`` sequences that the teacher sampled, given to both: ``kl`` (teacher against student, nats per token,
    with guidance, before top-k and top-p), also by scale, and ``token_match``, the share of tokens where both have the
    same first choice. Free-running under the same seeds, on all images: ``sampled_token_match``, the share of tokens
    that came out equal, and ``pixel_difference``, mean absolute, of pixels in [0, 1].
    """

    images: int
    kl: float
    kl_by_scale: list[float]
    token_match: float
    token_match_by_scale: list[float]
    sampled_token_match: float
    pixel_difference: float
    patch_nums: tuple[int, ...] = ()


class Evaluation(Frozen):
    """Student and teacher on the same labels, seeds and count.

    ``floor`` is the distance of real training images to real test images, in the features of ``feature_network``.
    """

    COST_BESIDE: ClassVar[str] = "cost, transformer, where quality was measured"
    """What `cost_beside` is called where it is shown."""

    images: int
    batch: int
    seed: int
    cfg: float
    top_k: int
    top_p: float
    device: str
    feature_network: str | None
    floor: float | None
    student: Quality
    teacher: Quality
    agreement: Agreement
    notes: list[str]

    @property
    def distance_ratio(self) -> float | None:
        """The student's distance as a multiple of the teacher's."""
        if self.student.distance is None or not self.teacher.distance:
            return None
        return self.student.distance / self.teacher.distance

    def cost_beside(self, setting: Setting) -> float | None:
        """The student's cost, if it was measured at another setting than the one whose cost is shown beside it."""
        return self.student.cost if self.student.setting != setting else None

    def rows(self) -> list[tuple[str, str, str]]:
        """The table for a person: what, teacher, student."""
        both = (self.teacher, self.student)
        cells = [("cost, transformer", *(f"{100 * q.cost:.1f} %" for q in both))]
        cells.append(("seconds per image", *(f"{q.seconds_per_image:.4g}" for q in both)))
        if self.feature_network:
            cells.append((f"Fréchet distance ({self.feature_network})", *(f"{q.distance:.4f}" for q in both)))
            cells.append(("  real against real", f"{self.floor:.4f}", ""))
            cells.append(("class accuracy", *(f"{100 * (q.accuracy or 0):.2f} %" for q in both)))
        a = self.agreement
        cells += [
            ("KL to the teacher, nats per token", "", f"{a.kl:.4f}"),
            ("token match, given the teacher's tokens", "", f"{100 * a.token_match:.1f} %"),
            ("token match, same seeds, free-running", "", f"{100 * a.sampled_token_match:.1f} %"),
            ("pixel difference, same seeds", "", f"{a.pixel_difference:.4f}"),
        ]
        return [(what, left, right) for what, left, right in cells]


@dataclass
class Run:
    """What is kept of one model's sampling: not the pictures. `sample` as often as needed, then `quality` of it all."""

    model: ActVAR
    counter: WorkCounter
    seconds: float = 0.0
    features: list[Tensor] = field(default_factory=list)
    predictions: list[Tensor] = field(default_factory=list)

    def sample(self, labels: Tensor, seed: int, settings: SamplingSettings, reference: Reference | None) -> Samples:
        """Sample one image for each of ``labels`` (B,), timed, counted and judged."""
        synchronise(self.model.device)
        started = time.perf_counter()
        samples = self.model.sample(labels, seed=seed, settings=settings, counter=self.counter)
        synchronise(self.model.device)
        self.seconds += time.perf_counter() - started
        if reference:
            features, predictions = reference.judge(to_uint8(samples.images))
            self.features.append(features)
            self.predictions.append(predictions)
        return samples

    def quality(self, labels: Tensor, reference: Reference | None, original: ModelConfig) -> Quality:
        """How good all pictures are that were sampled, of ``labels`` (N,); cost is a share of the ``original``'s."""
        distance = accuracy = by_class = None
        if reference:
            distance = max(0.0, frechet_distance(*moments(torch.cat(self.features)), *reference.test))
            predictions, classes = torch.cat(self.predictions), len(CLASS_NAMES)
            accuracy = float(multiclass_accuracy(predictions, labels, classes, average="micro"))
            each = multiclass_accuracy(predictions, labels, classes, average="none")
            by_class = {CLASS_NAMES[c]: float(each[c]) for c in labels.unique().tolist()}
        return Quality(
            name=self.model.config.name,
            threshold=self.model.threshold,
            paired_scales=self.model.setting.paired_scales,
            cost=self.counter.total / dense_macs(original, self.counter.images),
            seconds_per_image=self.seconds / len(labels),
            distance=distance,
            accuracy=accuracy,
            accuracy_by_class=by_class,
        )


def batch_seed(seed: int, number: int) -> int:
    """The seed of batch ``number`` of an evaluation, so that two evaluations with near seeds share no batch."""
    return seed * 1_000_003 + number


@torch.no_grad()
def evaluate(
    model: ActVAR,
    teacher: ActVAR,
    *,
    count: int = 2000,
    batch: int | None = None,
    seed: int = 0,
    cfg: float | None = None,
    top_k: int = 0,
    top_p: float = 0.0,
    progress: Progress | None = None,
) -> Evaluation:
    """Sample ``count`` images, classes in turn, from both models as they are set, and compare.

    Distances and accuracies are given where the teacher is `var-fashion`, whose feature network is shipped; for other
    models the agreement alone. ``batch`` is `images_together` by default, ``cfg`` of both what ``model`` has learned,
    or what is usual. Raises InputError where the two models have different tokens or classes, or ``count`` is too
    small to say anything.
    """
    batch = images_together(teacher.config) if batch is None else batch
    cfg = model.config.usual_cfg if cfg is None else cfg
    check_alike(model, teacher)
    if count < 2:
        raise InputError(f"{count} images are too few to evaluate: at least 2, better {FEW_IMAGES} or more")
    if batch < 1:
        raise InputError(f"batch must be at least 1, not {batch}")
    progress = progress or Progress()
    settings = SamplingSettings(cfg, top_k, top_p)
    reference = load_reference(teacher.device) if serves(teacher) else None
    notes = _notes(reference, count, teacher.config.name)
    for note in notes:
        progress.say(note)
    labels = balanced_labels(count, teacher.config.transformer.num_classes)
    left, right = Run(teacher, WorkCounter(teacher.config)), Run(model, WorkCounter(model.config))
    sums = AgreementSums.empty(len(teacher.config.tokenizer.patch_nums))
    equal, difference, compared = 0.0, 0.0, 0
    with progress.task("evaluating", count) as task:
        for number, y in enumerate(labels.split(batch)):
            runs = [left, right] if number % 2 == 0 else [right, left]
            made = {id(r): r.sample(y, batch_seed(seed, number), settings, reference) for r in runs}
            theirs, ours = made[id(left)], made[id(right)]
            equal += float((theirs.tokens.cpu() == ours.tokens.cpu()).double().mean(1).sum())
            difference += float((theirs.images.cpu() - ours.images.cpu()).abs().double().flatten(1).mean(1).sum())
            more = min(len(y), AGREEMENT_IMAGES - compared)
            if more > 0:
                y_device = y[:more].to(teacher.device)
                add_agreement(sums, model, teacher, y_device, theirs.tokens[:more], cfg)
                compared += more
            task.advance(len(y))
    tokens = sums.tokens.sum()
    return Evaluation(
        images=count,
        batch=batch,
        seed=seed,
        cfg=cfg,
        top_k=top_k,
        top_p=top_p,
        device=device_name(model.device),
        feature_network=FEATURE_NETWORK if reference else None,
        floor=reference.floor if reference else None,
        student=right.quality(labels, reference, teacher.config),
        teacher=left.quality(labels, reference, teacher.config),
        agreement=Agreement(
            images=compared,
            kl=float(sums.kl.sum() / tokens),
            kl_by_scale=(sums.kl / sums.tokens).tolist(),
            token_match=float(sums.equal.sum() / tokens),
            token_match_by_scale=(sums.equal / sums.tokens).tolist(),
            patch_nums=teacher.config.tokenizer.patch_nums,
            sampled_token_match=equal / count,
            pixel_difference=difference / count,
        ),
        notes=notes,
    )


def check_alike(model: ActVAR, teacher: ActVAR) -> None:
    """Raise InputError where the pictures of the two have nothing in common, or a token is another in each."""
    ours, theirs = model.config, teacher.config
    if ours.tokenizer != theirs.tokenizer or ours.transformer.num_classes != theirs.transformer.num_classes:
        raise InputError(f"{ours.name} and {theirs.name} cannot be compared: their tokenizers or classes differ")
    ours_codes, codes = (m.tokenizer.quantize.embedding.weight.detach() for m in (model, teacher))
    # Rounded perhaps, by whoever wrote the one file or the other.
    if not torch.allclose(ours_codes.to(codes), codes, atol=0.01 * float(codes.std())):
        raise InputError(f"{ours.name} and {theirs.name} cannot be compared: their tokenizers have different codebooks")


def _notes(reference: Reference | None, count: int, teacher: str) -> list[str]:
    if reference is None:
        return [f"no feature network is shipped for {teacher}'s pictures: agreement with the teacher only, no distance"]
    if count < FEW_IMAGES:
        return [
            f"{count} images are few: below {FEW_IMAGES} a Fréchet distance is mostly bias, "
            "to be compared at equal counts only"
        ]
    return []
