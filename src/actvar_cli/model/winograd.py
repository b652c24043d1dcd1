"""Convolutions by 3 x 3 weights with a quarter of the multiplications, which decode large images faster on a CPU.

Source: minimal filtering F(4 x 4, 3 x 3), arXiv 1509.09308. Tiles of 4 x 4 outputs and the 6 x 6 inputs that they read
are transformed so that the convolution becomes 36 products of matrices, one for each place of a tile.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actvar_cli.model.counters import is_exact
from actvar_cli.model.products import is_replaceable, widened

TILE, READ = 4, 6
"""Outputs of a tile along one side, and the inputs that these read."""

INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
WEIGHT = ((6, 0, 0), (-4, -4, -4), (-4, 4, -4), (1, 2, 4), (1, -2, 4), (0, 0, 24))
"""Times 24."""
OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
"""The paper's transforms along one side, for the points 0, 1, -1, 2, -2 and infinity."""

CHANNELS, PIXELS = 128, 1024
"""From how many channels on, and how many pixels of all images together, it is faster (docs/speed.md)."""

AT_ONCE = 64
"""Tiles that are computed together, about: so many stay in a core's cache."""


class Conv(nn.Conv2d):
    """A convolution whose weights may have fewer bits than what it reads."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, c_in, H, W) to (B, c_out, H, W), in the type of ``x``."""
        return self.computed(x, widened(self.weight, x), None if self.bias is None else widened(self.bias, x))

    def computed(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`forward` with ``weight`` and ``bias`` in the type of ``x``."""
        return self._conv_forward(x, weight, bias)  # type: ignore[no-any-return]


class Conv3x3(Conv):
    """A 3 x 3 convolution that keeps height and width, computed by the way that is faster."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, kernel_size=3, padding=1)

    def computed(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `Conv.computed`."""
        return convolve(x, weight, bias) if _pays(x, weight) else super().computed(x, weight, bias)


def _pays(x: Tensor, weight: Tensor) -> bool:
    batch, _, height, width = x.shape
    return (
        is_replaceable(x)
        and x.dtype == weight.dtype == torch.float32
        and min(weight.shape[:2]) >= CHANNELS
        and batch * height * width >= PIXELS
        and height % TILE == width % TILE == 0
        and x.is_contiguous(memory_format=torch.channels_last)
        # Work is counted as that of a convolution, whatever it is computed by.
        and not is_exact()
    )


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x`` (B, C, H, W) convolved with ``weight`` (D, C, 3, 3), plus ``bias`` (D,): (B, D, H, W).

    Zeros are around it; H and W are multiples of 4. Float32 and without gradients, channels last.
    """
    outputs, channels = weight.shape[:2]
    height, width = x.shape[2:]
    by_weight = _both_sides(WEIGHT) / 24**2
    by_input, by_output = _both_sides(INPUT), _both_sides(OUTPUT)
    products = (by_weight @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(-1, channels, outputs)
    made = x.new_empty(len(x), height, width, outputs)
    rows, columns = height // TILE, width // TILE
    together = max(1, AT_ONCE // columns)
    for image, out in zip(x.permute(0, 2, 3, 1), made.unflatten(1, (rows, TILE)), strict=True):
        padded = F.pad(image, (0, 0, 1, 1, 1, 1))
        for first in range(0, rows, together):
            strip = padded[TILE * first :]
            count = min(together, rows - first)
            down, right, _ = strip.stride()
            # The inputs of neighbours overlap.
            tiles = strip.as_strided(
                (READ, READ, count, columns, channels), (down, right, TILE * down, TILE * right, 1)
            )
            seen = (by_input @ tiles.reshape(READ**2, -1)).view(READ**2, -1, channels)
            found = by_output @ torch.bmm(seen, products).flatten(1)
            placed = found.view(TILE, TILE, count, columns, outputs).permute(2, 0, 3, 1, 4)
            out[first : first + count].unflatten(2, (columns, TILE)).copy_(placed)
    if bias is not None:
        made += bias
    return made.permute(0, 3, 1, 2)


@cache
def _both_sides(along: tuple[tuple[int, ...], ...]) -> Tensor:
    """A transform of both sides of a tile, as one matrix of what is flattened."""
    one = torch.tensor(along, dtype=torch.float32)
    return torch.kron(one, one)
