"""What a user chooses when a model is converted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from actvar_cli.model.config import Frozen

if TYPE_CHECKING:
    from actvar_cli.model.config import ModelConfig

WORK = 24 * 10**11
"""MACs of dense sampling that calibration may take, about."""

FEWEST = 8
"""Images that calibration samples however large the model is."""


class ConvertSettings(Frozen):
    """How the FFNs are split, and how much of the teacher's work the routers are calibrated on."""

    experts: Annotated[int, Field(ge=2, description="experts per FFN; must divide its hidden size")] = 8
    method: Annotated[
        Literal["kmeans", "random", "contiguous"],
        Field(description="how neurons are grouped: balanced k-means on fc1 rows, at random, or as they come"),
    ] = "kmeans"
    images: Annotated[
        int | None,
        Field(
            ge=8, description="images sampled from the model to calibrate the routers; 8 to 256 by its size if unset"
        ),
    ] = None


def affordable_images(config: ModelConfig, most: int) -> int:
    """How many images, ``most`` at most, can be sampled for calibration in a minute or a few."""
    from actvar_cli.model.counters import dense_macs

    return min(most, max(FEWEST, WORK // dense_macs(config)))
