"""What a user chooses when a model is converted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from actvar_cli.model.config import Frozen, NumExperts, RouterKind

if TYPE_CHECKING:
    from actvar_cli.model.config import ModelConfig

Method = Literal["tiers", "coactivation", "kmeans", "magnitude", "taylor", "random", "contiguous"]
"""How neurons can be grouped; see `convert.grouping`."""

WORK = 24 * 10**11
"""MACs of dense sampling that calibration may take, about."""

FEWEST, MOST = 8, 256
"""Images that are sampled for the routers however large, and however small, the model is."""

TOKENS = 8192
"""Tokens of each block that a router is fitted to, at most."""


class ConvertSettings(Frozen):
    """How the FFNs are split, and how much of the teacher's work the routers are calibrated on."""

    experts: Annotated[
        NumExperts,
        Field(description="experts per FFN, or one number for each block; each must divide the FFN's hidden size"),
    ] = 8
    method: Annotated[
        Method,
        Field(
            description="how neurons are grouped: balanced k-means on what makes them active, the more and the less "
            "important half apart (tiers) or all together (coactivation), or on fc1 rows (kmeans); by the size of "
            "their weights (magnitude), by how much predictions depend on them (taylor), at random, or as they come "
            "(contiguous)"
        ),
    ] = "tiers"
    router: Annotated[
        RouterKind,
        Field(
            description="what picks a token's experts: scores above a threshold (learned), near its best one's "
            "(relative); the same ones for all tokens (static), random ones, or none: all are always on"
        ),
    ] = "learned"
    images: Annotated[
        int | None,
        Field(
            ge=FEWEST,
            description="images sampled from the model to calibrate the routers; "
            f"{FEWEST} to {MOST} by its size if unset",
        ),
    ] = None

    def images_for(self, config: ModelConfig) -> int:
        """``images``, or as many as the size of the model allows."""
        return self.images or affordable_images(config, MOST)


def affordable_images(config: ModelConfig, most: int) -> int:
    """How many images, ``most`` at most, can be sampled for calibration in a minute or a few."""
    from actvar_cli.model.counters import dense_macs

    return min(most, max(FEWEST, WORK // dense_macs(config)))
