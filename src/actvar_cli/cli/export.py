"""actvar export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from actvar_cli.cli.options import Force, Json, Model, Output, Quiet, default, option
from actvar_cli.cli.out import Out
from actvar_cli.cli.outputs import check_folder
from actvar_cli.recipe.steps import ExportSettings as S
from actvar_cli.recipe.wording import checked


def export(
    model: Model,
    output: Output,
    dtype: Annotated[str, option(S, "dtype")] = default(S, "dtype"),
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a model as a folder to hand on: weights, tokenizer, configuration, model card.

    From a run's folder, the recipe and the record of the run go with it.
    """
    settings = checked(S, {"dtype": dtype}, {})
    out = Out(as_json=as_json, quiet=quiet)
    from actvar_cli.recipe import models
    from actvar_cli.recipe.cache import RECIPE, RECORD, read_texts
    from actvar_cli.weights.export import NAMES
    from actvar_cli.weights.export import export as export_model

    check_folder(output, replaceable=NAMES, force=force)
    source = models.named(model, device="cpu", progress=out.progress)
    export_model(
        source.open(),
        output,
        dtype=settings.dtype,
        force=force,
        lineage=source.lineage,
        files=read_texts(Path(model), (RECIPE, RECORD)) if Path(model).is_dir() else {},
        progress=out.progress,
    )
    files = {path.name: path.stat().st_size for path in sorted(output.iterdir())}
    out.result({"dtype": settings.dtype, "files": files}, f"{', '.join(files)}: {output}", path=output)
