"""The distill step of a recipe by itself, on models that the recipe names."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from actvar_cli.errors import InputError
from actvar_cli.progress import Progress
from actvar_cli.recipe import models, work
from actvar_cli.recipe.cache import key_of
from actvar_cli.recipe.flow import Flow, Ref
from actvar_cli.recipe.read import RecipeFile
from actvar_cli.recipe.steps import DistillSettings, DistillStep


def the_distill_step(file: RecipeFile) -> tuple[Flow, DistillStep]:
    """The one distill step of ``file``; InputError where there is not exactly one, or it names no student."""
    places = [(i, step) for i, step in enumerate(file.recipe.steps) if isinstance(step, DistillStep)]
    if len(places) != 1:
        found = "no distill step" if not places else f"{len(places)} distill steps"
        raise InputError(f"{file.path}: the recipe has {found}, `actvar distill` needs one")
    index, step = places[0]
    flow = file.flow[index]
    where = file.document.where(("steps", index))
    if flow.model is None or flow.model.made_here:
        raise InputError(
            f"{where}: step {flow.name!r} names no student: add 'student: FILE' (a converted model), "
            f"or run the whole recipe with `actvar run {file.path}`"
        )
    return flow, step
