"""actvar evaluate."""

from __future__ import annotations

from typing import Annotated

import typer

from actvar_cli.cli.options import Device, Json, Model, Quiet, Seed, default, option
from actvar_cli.cli.out import Out, table
from actvar_cli.recipe.steps import EvaluateSettings as S
from actvar_cli.recipe.steps import Gates
from actvar_cli.recipe.wording import checked


def evaluate(
    model: Model,
    against: Annotated[str, typer.Option("--against", metavar="MODEL", help="The original to compare with.")],
    count: Annotated[int, option(S, "count", "--count", "-n")] = default(S, "count"),
    budget: Annotated[float | None, option(S, "budget")] = None,
    cfg: Annotated[float | None, option(S, "cfg")] = None,
    top_k: Annotated[int, option(S, "top_k")] = default(S, "top_k"),
    top_p: Annotated[float, option(S, "top_p")] = default(S, "top_p"),
    max_distance_ratio: Annotated[float | None, option(S, "max_distance_ratio")] = None,
    max_cost: Annotated[float | None, option(S, "max_cost")] = None,
    batch: Annotated[int | None, option(S, "batch")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare a model with its original under the same seeds: distance to real pictures, class accuracy, agreement.

    With a gate (--max-...) that is not met, the result is printed all the same and the exit code is 3.
    """
    settings = checked(
        S,
        {
            "count": count,
            "budget": budget,
            "cfg": cfg,
            "top_k": top_k,
            "top_p": top_p,
            "max_distance_ratio": max_distance_ratio,
            "max_cost": max_cost,
            "batch": batch,
        },
        {},
    )
    out = Out(as_json=as_json, quiet=quiet)
    from actvar_cli.evaluate.evaluate import evaluate as evaluate_model
    from actvar_cli.recipe.models import open_model
    from actvar_cli.recipe.summary import check_gates

    opened = open_model(model, device=device, progress=out.progress, budget=settings.budget)
    teacher = open_model(against, device=device, progress=out.progress)
    found = evaluate_model(
        opened,
        teacher,
        count=count,
        batch=batch,
        seed=seed,
        cfg=cfg,
        top_k=top_k,
        top_p=top_p,
        progress=out.progress,
    )
    title = f"{count} images from each, same seeds"
    data = {**found.model_dump(mode="json"), "distance_ratio": found.distance_ratio}
    out.result(data, table("", found.teacher.name, found.student.name, rows=found.rows(), title=title))
    check_gates(found, Gates(max_distance_ratio=max_distance_ratio, max_cost=max_cost))
