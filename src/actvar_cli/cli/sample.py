"""actvar sample."""

from __future__ import annotations

from typing import Annotated

import typer

from actvar_cli.cli.options import Device, Force, Json, Model, Output, Quiet, Seed, default, option
from actvar_cli.cli.out import Out
from actvar_cli.cli.outputs import check_file, check_folder
from actvar_cli.errors import InputError
from actvar_cli.recipe.steps import SampleSettings as S
from actvar_cli.recipe.wording import checked


def sample(
    model: Model,
    output: Output,
    classes: Annotated[
        str, typer.Option("--classes", help="Labels, as 3,7. Default: all, or ten spread over them.")
    ] = "",
    count: Annotated[int, option(S, "count", "--count", "-n")] = default(S, "count"),
    budget: Annotated[float | None, option(S, "budget")] = None,
    cfg: Annotated[float | None, option(S, "cfg")] = None,
    top_k: Annotated[int, option(S, "top_k")] = default(S, "top_k"),
    top_p: Annotated[float, option(S, "top_p")] = default(S, "top_p"),
    more_smooth: Annotated[bool, option(S, "more_smooth")] = False,
    batch: Annotated[int | None, option(S, "batch")] = None,
    dtype: Annotated[str, option(S, "dtype")] = default(S, "dtype"),
    seed: Seed = 0,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Sample pictures: a grid (.png), arrays (.npz, as the ADM evaluator reads), or a folder of PNGs (no suffix)."""
    settings = checked(
        S,
        {
            "classes": _labels(classes),
            "count": count,
            "budget": budget,
            "cfg": cfg,
            "top_k": top_k,
            "top_p": top_p,
            "more_smooth": more_smooth,
            "batch": batch,
            "dtype": dtype,
        },
        {},
    )
    out = Out(as_json=as_json, quiet=quiet)
    from actvar_cli.recipe import pictures

    pictures.check_kind(output)
    if output.suffix:
        check_file(output, force=force)
    else:
        check_folder(output, replaceable=pictures.own_files(output), force=force)
    from actvar_cli.recipe.models import open_model

    opened = open_model(model, device=device, progress=out.progress, dtype=settings.dtype)
    images, labels = pictures.draw(opened, settings, seed=seed, progress=out.progress)
    path = pictures.save(output, images, labels, force=force)
    data = {"images": len(images), "classes": sorted(set(labels.tolist())), "seed": seed}
    out.result(data, f"{len(images)} images: {path}", path=path)


def _labels(text: str) -> tuple[int, ...] | None:
    if not text:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--classes must be labels with commas between, such as 3,7, not {text!r}") from None
