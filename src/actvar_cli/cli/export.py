"""actvar export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from actvar_cli.cli.options import Force, Json, Model, Output, Quiet, default, option
from actvar_cli.cli.out import Out
from actvar_cli.cli.outputs import check_file, check_folder
from actvar_cli.recipe.steps import ExportSettings
from actvar_cli.recipe.wording import checked


class S(ExportSettings):
    """How, and as what, a model is written; a recipe's step writes folders alone."""

    format: Annotated[
        Literal["actvar", "var"],
        Field(description="a folder (actvar), or one .safetensors or .pth for anybody's VAR code (var)"),
    ] = "actvar"


def export(
    model: Model,
    output: Output,
    format: Annotated[str, option(S, "format")] = default(S, "format"),
    dtype: Annotated[str, option(S, "dtype")] = default(S, "dtype"),
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a model as a folder to hand on: weights, tokenizer, configuration, model card.

    From a run's folder, the recipe and the record of the run go with it. With --format var: the transformer alone, in
    the published layout and with every neuron back in its place, to be loaded by the original code.
    """
    settings = checked(S, {"format": format, "dtype": dtype}, {})
    out = Out(as_json=as_json, quiet=quiet)
    if settings.format == "var":
        _published(model, output, settings.dtype, force, out)
    else:
        _folder(model, output, settings.dtype, force, out)


def _published(model: str, output: Path, dtype: str, force: bool, out: Out) -> None:
    from actvar_cli.recipe import models
    from actvar_cli.weights.published import check_suffix, write_published

    check_suffix(output)
    check_file(output, force=force)
    opened = models.open_model(model, device="cpu", progress=out.progress)
    with out.progress.task(f"writing {output.name}", 1) as task:
        files = {path.name: path.stat().st_size for path in write_published(output, opened, dtype=dtype, force=force)}
        task.advance()
    if not opened.config.is_dense:
        out.hint("the published code has no experts: it computes all of them, whatever budget the model was made for")
    out.result({"format": "var", "dtype": dtype, "files": files}, f"{', '.join(files)}: {output.parent}", path=output)


def _folder(model: str, output: Path, dtype: str, force: bool, out: Out) -> None:
    from actvar_cli.recipe import models
    from actvar_cli.recipe.cache import RECIPE, RECORD, read_texts
    from actvar_cli.weights.export import NAMES
    from actvar_cli.weights.export import export as export_model

    check_folder(output, replaceable=NAMES, force=force)
    source = models.named(model, device="cpu", progress=out.progress)
    export_model(
        source.open(),
        output,
        dtype=dtype,
        force=force,
        lineage=source.lineage,
        files=read_texts(Path(model), (RECIPE, RECORD)) if Path(model).is_dir() else {},
        progress=out.progress,
    )
    files = {path.name: path.stat().st_size for path in sorted(output.iterdir())}
    out.result({"format": "actvar", "dtype": dtype, "files": files}, f"{', '.join(files)}: {output}", path=output)
