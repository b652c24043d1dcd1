"""actvar distill."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from actvar_cli.cli.options import Device, Force, Json, Quiet, Set
from actvar_cli.cli.out import Out, table
from actvar_cli.cli.outputs import check_file


def distill(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe with a distill step.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the student goes. Default: RECIPE.safetensors here.")
    ] = None,
    settings: Set = None,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Teach routers, experts and token gates to imitate the original.

    Runs the distill step alone of a recipe that names a teacher and a student (a converted model). A training that was
    interrupted goes on where it stopped when the same command is given again.
    """
    out = Out(as_json=as_json, quiet=quiet)
    from actvar_cli.recipe.alone import distill_alone, the_distill_step
    from actvar_cli.recipe.read import find, read

    file = read(find(recipe), settings or ())
    chosen = the_distill_step(file)
    output = check_file(output or Path(f"{file.name}.safetensors"), force=force)
    result = distill_alone(file, chosen, output, device=device, force=force, progress=out.progress)
    rows = [
        ("optimiser steps", str(result["optimiser_steps"])),
        *((name, f"{result['last'][name]:.4g}") for name in ("kl", "cost") if name in result["last"]),
        ("budgets", ", ".join(f"{budget:g}" for budget in result["budgets"])),
        ("written", str(output)),
    ]
    out.result(result, table("distill", "", rows=rows), path=output)
