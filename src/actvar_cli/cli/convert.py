"""actvar convert."""

from __future__ import annotations

from typing import Annotated

from actvar_cli.cli.options import Device, Force, Json, Model, Output, Quiet, Seed, default, one_or_each, option
from actvar_cli.cli.out import Out, table
from actvar_cli.cli.outputs import check_file
from actvar_cli.convert.settings import ConvertSettings as S
from actvar_cli.recipe.wording import checked


def convert(
    model: Model,
    output: Output,
    experts: Annotated[int, option(S, "experts", parser=one_or_each, metavar="N[,N...]")] = default(S, "experts"),
    method: Annotated[str, option(S, "method")] = default(S, "method"),
    router: Annotated[str, option(S, "router")] = default(S, "router"),
    images: Annotated[int, option(S, "images")] = default(S, "images"),
    seed: Seed = 0,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Split every FFN of a model into experts behind a router.

    Neurons are permuted, never lost: with all experts on, the result is checked to be the same function. Routers are
    fitted to the model's own activations, so the file is usable at once, as at --budget 0.8.
    """
    settings = checked(S, {"experts": experts, "method": method, "router": router, "images": images}, {})
    out, output = Out(as_json=as_json, quiet=quiet), check_file(output, force=force)
    from actvar_cli.recipe import models, work
    from actvar_cli.weights.artefact import refuse_artefact, save

    source = models.named(model, device=device, progress=out.progress)
    refuse_artefact(output, source.open().config, force=force)
    converted, lineage = work.split(source, settings, seed=seed, progress=out.progress)
    save(output, converted.model, lineage, force=force)
    difference, budgets = converted.max_logit_difference, converted.model.budgets()
    rows = [
        ("every FFN is split into", f"{converted.model.config.experts}, grouped by {method}"),
        ("router", router),
        ("largest logit difference, all experts on", f"{difference:.1e}"),
        ("budgets", ", ".join(f"{budget:g}" for budget in budgets) or "none that experts alone reach"),
        ("written", str(output)),
    ]
    data = {
        "experts": experts,
        "method": method,
        "router": router,
        "max_logit_difference": difference,
        "budgets": budgets,
    }
    out.result({**data, "router_fit": list(converted.router_fit)}, table("convert", "", rows=rows), path=output)
