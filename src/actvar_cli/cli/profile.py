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
    measure: Annotated[bool, typer.Option("--measure", help="Where the time goes too, by part and by scale.")] = False,
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
        measure=measure,
        progress=out.progress,
    )
    tables = [_main(found), _by_scale(found), *_times(found), *([_by_module(found)] if verbose else [])]
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


def _times(found: Profile) -> list[Table]:
    """Time per image by part and by scale, with what it would be by the FLOPs; none if it was not measured."""
    from actvar_cli.model.counters import PARTS
    from actvar_cli.profile.parts import REST, TOKENIZER

    modes = list(_modes(found).values())
    every = [mode.times for mode in modes if mode.times]
    if not every:
        return []
    parts = [part for part in (*PARTS, REST, TOKENIZER) if any(part in t.parts for t in every)]
    by_part = [
        _compared(part.replace("_", " "), [t.parts.get(part, 0.0) for t in every], [m.parts.get(part) for m in modes])
        for part in parts
    ]
    by_scale = [
        _compared(f"{pn} x {pn}", [t.scales[scale] for t in every], [m.scales[scale] for m in modes])
        for scale, pn in enumerate(found.patch_nums)
    ]
    names = [*_modes(found), *(["speed-up", "efficiency"] if found.compressed else [])]
    return [
        table("part, time per image", *names, rows=by_part),
        table("scale, time per image", *names, rows=by_scale),
    ]


def _compared(what: str, seconds: list[float], flops: list[float | None]) -> tuple[str, ...]:
    from actvar_cli.profile.units import duration

    cells = [duration(s) if s else "" for s in seconds]
    if len(seconds) < 2:
        return what, *cells
    if not all(seconds):
        return what, *cells, "", ""
    speedup = seconds[0] / seconds[1]
    promised = flops[0] / flops[1] if flops[0] and flops[1] else None
    return what, *cells, f"{speedup:.2f}", f"{speedup / promised:.2f}" if promised else ""
