"""What a user chooses when a model is converted."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from actvar_cli.model.config import Frozen


class ConvertSettings(Frozen):
    """How the FFNs are split, and how much of the teacher's work the routers are calibrated on."""

    experts: Annotated[int, Field(ge=2, description="experts per FFN; must divide its hidden size")] = 8
    method: Annotated[
        Literal["kmeans", "random", "contiguous"],
        Field(description="how neurons are grouped: balanced k-means on fc1 rows, at random, or as they come"),
    ] = "kmeans"
    images: Annotated[int, Field(ge=8, description="images sampled from the teacher to calibrate the routers")] = 256
