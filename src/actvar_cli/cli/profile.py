"""actvar profile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from actvar_cli.cli.options import Device, Json, Model, Quiet, Seed, default, option
from actvar_cli.cli.out import Out, table
from actvar_cli.recipe.steps import ProfileSettings as S
from actvar_cli.recipe.wording import checked

if TYPE_CHECKING:
    from rich.table import Table

    from actvar_cli.profile.profile import Mode, Profile


def profile(
    model: Model,
    budget: Annotated[float | None, option(S, "budget")] = None,
    batch: Annotated[int | None, option(S, "batch")] = None,
    repeats: Annotated[int, option(S, "repeats")] = default(S, "repeats"),
    dtype: Annotated[str, option(S, "dtype")] = default(S, "dtype"),
    seed: Seed = 0,
    device: Device = "auto",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="FLOPs of every module too.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Count a model's FLOPs on real sampling, and measure its time, dense and compressed.

    FLOPs are counted by the model itself, by fvcore and by torch's flop_counter; all must agree within 0.5 %.
    """
    settings = checked(S, {"budget": budget, "batch": batch, "repeats": repeats, "dtype": dtype}, {})
    out = Out(as_json=as_json, quiet=quiet)
    from actvar_cli.profile.profile import profile as profile_model
    from actvar_cli.recipe.models import open_model

    opened = open_model(model, device=device, progress=out.progress, dtype=settings.dtype)
    found = profile_model(
        opened,
        budget=settings.budget,
        batch=settings.batch_for(opened.config),
        repeats=settings.repeats,
        seed=seed,
        progress=out.progress,
    )
    tables = [_main(found), _by_scale(found), *([_by_module(found)] if verbose else [])]
    out.result(found.model_dump(mode="json"), *tables, f"{found.scope}.")


def _modes(found: Profile) -> dict[str, Mode]:
    return {"dense": found.dense, **({"compressed": found.compressed} if found.compressed else {})}


def _main(found: Profile) -> Table:
    from actvar_cli.profile.units import quantity

    names = list(_modes(found))
    at = f" at budget {found.budget:g}" if found.budget is not None and found.compressed else ""
    title = f"{found.model}{at}, {quantity(found.parameters['total'])} parameters, on {found.device}"
    return table("", *names, rows=[row[: 1 + len(names)] for row in found.rows()], title=title)


def _by_scale(found: Profile) -> Table:
    from actvar_cli.profile.units import quantity

    modes = _modes(found)
    rows = [
        (f"{pn} x {pn}", *(quantity(mode.scales[scale]) for mode in modes.values()))
        for scale, pn in enumerate(found.patch_nums)
    ]
    return table("scale, FLOPs per image", *modes, rows=rows)


def _by_module(found: Profile) -> Table:
    from actvar_cli.profile.units import quantity

    modes = _modes(found)
    modules = dict.fromkeys(name for mode in modes.values() for name in mode.modules)
    rows = [(name, *(quantity(mode.modules.get(name, 0)) for mode in modes.values())) for name in modules]
    return table("module, FLOPs per image by fvcore", *modes, rows=rows)
