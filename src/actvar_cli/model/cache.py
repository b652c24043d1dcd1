"""Keys and values of the scales sampled so far, in buffers that are allocated once."""

from __future__ import annotations

import torch
from torch import Tensor

from actvar_cli.model.config import ModelConfig

TOGETHER, TOGETHER_BYTES = 50, 2**33
"""Images that are sampled together unless somebody says otherwise, and what their keys and values may take, at most."""


def bytes_of_image(config: ModelConfig, itemsize: int = 4) -> int:
    """Bytes of the keys and values of one image, of both rows of guidance, in numbers of ``itemsize`` bytes."""
    arch = config.transformer
    return 2 * 2 * arch.depth * config.tokenizer.num_tokens * arch.embed_dim * itemsize


def images_together(config: ModelConfig) -> int:
    """How many images are sampled together, by the size of the model alone: they are others with other batches."""
    return max(1, min(TOGETHER, TOGETHER_BYTES // bytes_of_image(config)))


class KVCache:
    """Keys and values of every block in ``room`` (2, depth, rows, heads, L, head_dim); only filled, never joined.

    ``updates`` holds, for blocks that ask for it, what they added to the tokens of the scale before.
    """

    def __init__(self, room: Tensor) -> None:
        self._room = room
        self._keys, self._values = room.unbind(0)
        self._filled = 0
        self._size = 0
        self.updates: dict[int, Tensor] = {}

    def clear(self) -> None:
        """Forget everything: the next scale is the first."""
        self._filled = self._size = 0

    def begin_scale(self, tokens: int) -> None:
        """Make room for ``tokens`` more positions; every block then writes them once."""
        self._filled += self._size
        self._size = tokens

    def first(self, rows: int) -> KVCache:
        """That of the first ``rows``, in the same memory; it goes on after the scales that are in this one."""
        made = KVCache(self._room[:, :, :rows])
        made._filled = self.length
        made.updates = {block: update[:rows] for block, update in self.updates.items()}
        return made

    def adopt(self, other: KVCache) -> None:
        """Go on after the scales that ``other``, of as many rows, has been filled with: copy them."""
        self._filled, self._size, self.updates = other.length, 0, other.updates
        for ours, theirs in ((self._keys, other._keys), (self._values, other._values)):
            ours[..., : self.length, :] = theirs[..., : self.length, :]

    @property
    def length(self) -> int:
        """Positions that attention sees, the current scale included."""
        return self._filled + self._size

    def room(self, block: int) -> tuple[Tensor, Tensor, int]:
        """All room for a block's keys and values, (rows, heads, L, head_dim), and where this scale's begins."""
        return self._keys[block], self._values[block], self._filled

    def filled(self, block: int) -> tuple[Tensor, Tensor]:
        """All keys and values so far, this scale's included, (rows, heads, length, head_dim)."""
        return self._keys[block, :, :, : self.length], self._values[block, :, :, : self.length]

    def extend(self, block: int, keys: Tensor, values: Tensor, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Write this scale's (rows, heads, tokens, head_dim) and return all keys and values so far.

        With a ``factor`` (rows, heads, tokens, 1) keys are multiplied by it on the way.
        """
        here = slice(self._filled, self.length)
        if factor is None:
            self._keys[block, :, :, here] = keys
        else:
            torch.mul(keys, factor, out=self._keys[block, :, :, here])
        self._values[block, :, :, here] = values
        return self.filled(block)
