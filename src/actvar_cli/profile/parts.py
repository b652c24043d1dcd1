"""Where the time of sampling goes, by part of the model and by scale."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn

from actvar_cli.model.device import synchronise
from actvar_cli.model.sampling import ActVAR
from actvar_cli.profile.work import is_part, part_of

TOKENIZER, REST = "tokenizer", "rest"
"""What is no part of the transformer: decoding, and all that is done around products (norms, sums, drawing tokens)."""


class Clock:
    """Seconds by part and scale of what the model samples while `watching`.

    Every part waits for the device before and after, so the sum is somewhat more than sampling takes by itself.
    """

    def __init__(self, model: ActVAR) -> None:
        self.model = model
        self.seconds: dict[tuple[str, int], float] = defaultdict(float)
        self._scale = 0
        self._begun: list[float] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time what is sampled inside; its whole time is in ``seconds`` too."""
        with ExitStack() as stack:
            for name, module in self.model.transformer.named_modules():
                if is_part(name):
                    self._watch(stack, module, part_of(name))
            self._watch(stack, self.model.tokenizer.decoder, TOKENIZER)
            first = self.model.transformer.stack[0].register_forward_pre_hook(self._tell)
            stack.callback(first.remove)
            begun = self._now()
            yield
            whole = self._now() - begun
        self.seconds[REST, self._scale] += whole - sum(self.seconds.values())

    def by(self, index: int) -> dict[Any, float]:
        """Seconds by part (0) or by scale (1)."""
        total: dict[Any, float] = defaultdict(float)
        for key, seconds in self.seconds.items():
            total[key[index]] += seconds
        return dict(total)

    def _watch(self, stack: ExitStack, module: nn.Module, part: str) -> None:
        stack.callback(module.register_forward_pre_hook(self._begin).remove)
        stack.callback(module.register_forward_hook(partial(self._end, part)).remove)

    def _now(self) -> float:
        synchronise(self.model.device)
        return time.perf_counter()

    def _tell(self, block: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._scale = inputs[2].scale

    def _begin(self, *_: Any) -> None:
        self._begun.append(self._now())

    def _end(self, part: str, *_: Any) -> None:
        self.seconds[part, self._scale] += self._now() - self._begun.pop()
