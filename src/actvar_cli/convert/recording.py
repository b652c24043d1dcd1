"""What a model does on its own samples: the tokens it draws, and what its blocks compute on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from actvar_cli.convert.settings import MOST, affordable_images
from actvar_cli.model.block import Block, Decisions, Record, Sampling, TeacherForced
from actvar_cli.model.cache import bytes_of_image
from actvar_cli.model.device import fast_bf16, return_memory
from actvar_cli.model.sampling import ActVAR, SamplingSettings, balanced_labels, rows_of
from actvar_cli.progress import Progress

CACHE_BYTES = 3 * 2**26
"""Room for the keys and values of images that are sampled together while calibrating; one image may take more."""

GPU_CACHE_BYTES = 2**31
"""The same on a GPU, which few images leave idle."""


@dataclass(frozen=True)
class TeacherSamples:
    """Images drawn from a model, as ``labels`` (N,) and ``tokens`` (N, L).

    ``logits`` (N, L, V), if they were kept, are what it drew them from: after guidance, in half precision.
    """

    labels: Tensor
    tokens: Tensor
    logits: Tensor | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> TeacherSamples:
        """Those at ``index`` (n,)."""
        index = index.to(self.labels.device)
        return TeacherSamples(
            self.labels[index], self.tokens[index], None if self.logits is None else self.logits[index]
        )

    def some(self, count: int) -> TeacherSamples:
        """At most ``count``: the first ones, or where there are more classes than that, of classes spread over all.

        Samples have the classes in turn, and of a thousand the first ones are alike: fishes and birds.
        """
        count, classes = min(count, len(self)), len(self.labels.unique())
        return self[balanced_labels(count, classes) if count < classes else torch.arange(count)]


@dataclass(frozen=True)
class FFNRecord:
    """What one block's FFN read and did, for the n tokens that were picked.

    ``h`` (n, C) is its input after AdaLN, in bfloat16, ``gain`` (n, C) the FFN's g2, ``energy`` (n,) the squared norm
    of the block's output.
    """

    h: Tensor
    gain: Tensor
    energy: Tensor

    def some(self, count: int) -> FFNRecord:
        """At most ``count`` of the tokens, evenly from all: they lie batch by batch, and in a batch scale by scale."""
        index = torch.linspace(0, len(self.h) - 1, min(count, len(self.h)), device=self.h.device).long()
        return FFNRecord(self.h[index], self.gain[index], self.energy[index])


def sampling_batch(model: ActVAR) -> int:
    """How many images to sample at once so that their keys and values stay within `CACHE_BYTES`.

    At most 32, or 512 on a GPU.
    """
    per_image = bytes_of_image(model.config, model.transformer.cache_dtype.itemsize)
    room, most = (CACHE_BYTES, 32) if model.device.type == "cpu" else (GPU_CACHE_BYTES, 512)
    return min(most, max(1, room // per_image))


def quick_calibration(model: ActVAR) -> torch.autocast:
    """Inside, a large model computes in bfloat16, where that is quicker.

    Not for what is kept: routers are fitted to far coarser figures than what is rounded off.
    """
    large = affordable_images(model.config, MOST) < MOST
    # Not cached: all weights in bfloat16 would take half the model's memory again.
    return torch.autocast(
        model.device.type, torch.bfloat16, enabled=large and fast_bf16(model.device), cache_enabled=False
    )


@contextmanager
def returning_memory(model: ActVAR) -> Iterator[None]:
    """Inside, memory is given back at every scale: what one leaves behind is too small for the next's activations."""
    handle = model.transformer.stack[0].register_forward_hook(lambda *_: return_memory())
    try:
        yield
    finally:
        handle.remove()


class Recorder:
    """Watches a model sample, and keeps ``per_image`` random tokens of each image from every block.

    Both rows of CFG take part. Everything is kept until `records` has handed it out, so inputs are rounded to
    bfloat16: a router is fitted to them, which is far coarser.
    """

    def __init__(self, model: ActVAR, per_image: int, generator: torch.Generator) -> None:
        self.model, self.per_image, self.generator = model, per_image, generator
        self.rows = 0
        self.row: list[Tensor] = []
        self.scale: list[Tensor] = []
        self.parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in model.transformer.stack]
        self.gains: list[list[Tensor]] = [[] for _ in model.transformer.stack]
        self.picked: list[Tensor] = []

    def begin(self, images: int) -> None:
        """Choose the tokens of the next ``images`` images, which are sampled together."""
        patch_nums, rows = self.model.config.tokenizer.patch_nums, 2 * images
        count = self.per_image * images
        row = torch.randint(rows, (count,), generator=self.generator)
        position = torch.randint(self.model.config.tokenizer.num_tokens, (count,), generator=self.generator)
        self.picked, begin = [], 0
        for scale, pn in enumerate(patch_nums):
            here = (position >= begin) & (position < begin + pn * pn)
            index = row[here] * pn * pn + position[here] - begin
            self.picked.append(index.to(self.model.device))
            self.row.append(row[here].to(self.model.device) + self.rows)
            self.scale.append(torch.full_like(index, scale))
            begin += pn * pn
        self.rows += rows

    @contextmanager
    def watching(self) -> Iterator[None]:
        """What the model samples inside is recorded."""
        with ExitStack() as stack:
            for block in self.model.transformer.stack:
                seen: list[Tensor] = []
                stack.callback(block.ffn.register_forward_pre_hook(_keep_input(seen)).remove)
                stack.callback(block.register_forward_hook(self._record(seen)).remove)
            yield

    def _record(self, seen: list[Tensor]) -> Any:
        def after(block: nn.Module, inputs: tuple[Tensor, Tensor, Sampling], out: Tensor) -> None:
            assert isinstance(block, Block)
            _, ada, context = inputs
            h = seen.pop()
            index = self.picked[context.scale]
            energy = out.flatten(0, 1).index_select(0, index).float().square().sum(1)
            self.parts[block.index].append((h.flatten(0, -2).index_select(0, index).bfloat16(), energy))
            if context.scale == 0:
                self.gains[block.index].append(ada[:, 1].clone())

        return after

    @property
    def scales(self) -> Tensor:
        """Where every token was, (n,)."""
        return torch.cat(self.scale)

    def records(self) -> Iterator[FFNRecord]:
        """The record of one block after the other; each is let go once the next is asked for."""
        row = torch.cat(self.row)
        for parts, gains in zip(self.parts, self.gains, strict=True):
            h, energy = (torch.cat(both) for both in zip(*parts, strict=True))
            parts.clear()
            yield FFNRecord(h, torch.cat(gains)[row], energy)


def _keep_input(seen: list[Tensor]) -> Any:
    def before(ffn: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    return before


def room_for_logits(model: ActVAR, count: int) -> Tensor:
    """Room for `TeacherSamples.logits` of ``count`` images, in one piece.

    Parts that are joined in the end are there twice for a moment.
    """
    size = count, model.config.tokenizer.num_tokens, model.config.tokenizer.vocab_size
    return torch.empty(size, dtype=torch.float16, device=model.device)


def draw_samples(
    model: ActVAR,
    count: int,
    *,
    seed: int,
    progress: Progress,
    recorder: Recorder | None = None,
    settings: SamplingSettings | None = None,
    keep_logits: bool = False,
    first: int = 0,
) -> TeacherSamples:
    """Sample ``count`` images with classes in turn, moved on by ``first``. ``recorder`` watches."""
    classes = model.config.transformer.num_classes
    labels = (balanced_labels(count, classes) + first) % classes
    tokens: list[Tensor] = []
    kept = room_for_logits(model, count if keep_logits else 0)
    with (
        progress.task("sampling the teacher", count) as task,
        returning_memory(model),
        recorder.watching() if recorder else ExitStack(),
    ):
        for i, part in enumerate(labels.split(size := sampling_batch(model))):
            if recorder:
                recorder.begin(len(part))
            logits: list[Tensor] | None = [] if keep_logits else None
            tokens.append(model.sample_tokens(part, seed=seed + i, settings=settings, logits=logits))
            if logits:
                kept[i * size : (i + 1) * size] = torch.cat(logits, dim=1)
            return_memory()
            task.advance(len(part))
    return TeacherSamples(labels.to(model.device), torch.cat(tokens), kept if keep_logits else None)


@torch.no_grad()
def decisions_at(model: ActVAR, samples: TeacherSamples, threshold: float, images: int) -> list[Decisions]:
    """What every block decides at ``threshold``, teacher-forced on ``images`` of the samples."""
    few = samples.some(images)
    rows, var_input = rows_of(model, few.labels, few.tokens)
    context = model.transformer.teacher_forced(threshold)
    model.transformer(rows, var_input, context)
    return context.decisions


@torch.no_grad()
def record_blocks(
    model: ActVAR,
    samples: TeacherSamples,
    *,
    positions: Tensor,
    per_image: int | None,
    threshold: float,
    generator: torch.Generator,
    progress: Progress,
    batch: int = 8,
) -> tuple[list[Record], Tensor]:
    """Run teacher-forced over ``samples`` and keep, from every block, ``per_image`` random tokens per image.

    ``positions`` (P,) are the positions of the sequence to choose from; with ``per_image=None`` all of as many
    rows as there are images are kept, one row after the other. All rows that the model computes take part.
    Returns the records of the blocks, and the positions (n,) of the tokens.
    """
    length = model.config.tokenizer.num_tokens
    chunks: list[list[Record]] = []
    picked: list[Tensor] = []
    with progress.task("recording updates", len(samples)) as task:
        for i in range(0, len(samples), batch):
            labels, tokens = samples.labels[i : i + batch], samples.tokens[i : i + batch]
            rows, var_input = rows_of(model, labels, tokens)
            if per_image is None:
                choice = torch.arange(len(positions)).repeat(len(labels))
                row = torch.randperm(len(rows), generator=generator)[: len(labels)].repeat_interleave(len(positions))
            else:
                choice = torch.randint(len(positions), (per_image * len(labels),), generator=generator)
                row = torch.randint(len(rows), (per_image * len(labels),), generator=generator)
            pick = row.to(model.device) * length + positions.to(model.device)[choice.to(model.device)]
            context: TeacherForced = model.transformer.teacher_forced(threshold, pick=pick)
            model.transformer(rows, var_input, context)
            chunks.append(context.records)
            picked.append(pick)
            task.advance(len(labels))
    names = [field.name for field in fields(Record)]
    made = [
        Record(*(torch.cat([getattr(chunk[b], name) for chunk in chunks]) for name in names))
        for b in range(model.config.transformer.depth)
    ]
    return made, torch.cat(picked) % length
