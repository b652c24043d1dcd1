"""Where the time of sampling goes, by part of the model and by scale."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import median
from typing import Any

from torch import nn

from actvar_cli.model.config import Frozen
from actvar_cli.model.device import synchronise
from actvar_cli.model.sampling import ActVAR
from actvar_cli.profile.work import is_part, part_of

TOKENIZER, REST = "tokenizer", "rest"
"""What is no part of the transformer: decoding, and all that is done around products (norms, sums, drawing tokens)."""


class Times(Frozen):
    """Seconds per image, by part (those of `PARTS`, `TOKENIZER` and `REST`) and by scale, decoding apart."""

    parts: dict[str, float]
    scales: list[float]


class Clock:
    """Seconds by part and by scale of one sampling, done while `watching`.

    Every part waits for the device before and after, so that the whole takes a little longer than it does unwatched.
    """

    def __init__(self, model: ActVAR) -> None:
        self.model = model
        self.parts: dict[str, float] = defaultdict(float)
        self.scales: list[float] = []
        self._begun: list[float] = []
        self._scale_begun = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time what is sampled inside."""
        var, decoder = self.model.transformer, self.model.tokenizer.decoder
        with ExitStack() as stack:
            for hook in (
                *(self._watch(m, part_of(name)) for name, m in var.named_modules() if is_part(name)),
                self._watch(decoder, TOKENIZER),
                # The first scale begins with the sampling, each other one with what it reads of those before.
                *([m.register_forward_pre_hook(self._next)] for m in (var.word_embed, decoder)),
            ):
                for handle in hook:
                    stack.callback(handle.remove)
            begun = self._scale_begun = self._now()
            yield
            self.parts[REST] = self._now() - begun - sum(self.parts.values())

    def _watch(self, module: nn.Module, part: str) -> list[Any]:
        return [
            module.register_forward_pre_hook(lambda *_: self._begun.append(self._now())),
            module.register_forward_hook(partial(self._end, part)),
        ]

    def _now(self) -> float:
        synchronise(self.model.device)
        return time.perf_counter()

    def _next(self, *_: Any) -> None:
        now = self._now()
        self.scales.append(now - self._scale_begun)
        self._scale_begun = now

    def _end(self, part: str, *_: Any) -> None:
        self.parts[part] += self._now() - self._begun.pop()


def times(clocks: Sequence[Clock], images: int) -> Times:
    """The medians of ``clocks``, each of one sampling of ``images`` images."""
    parts = {part for clock in clocks for part in clock.parts}
    return Times(
        parts={part: median(clock.parts[part] for clock in clocks) / images for part in sorted(parts)},
        scales=[median(seconds) / images for seconds in zip(*(clock.scales for clock in clocks), strict=True)],
    )
