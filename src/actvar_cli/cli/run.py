"""actvar run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actvar_cli.cli.bars import took
from actvar_cli.cli.options import Device, Json, Quiet, Set
from actvar_cli.cli.out import Out, table

if TYPE_CHECKING:
    from actvar_cli.recipe.run import Run


def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A file, or a name of `actvar ls --recipes`.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The run's folder. Default: runs/NAME, by the recipe's name.")
    ] = None,
    settings: Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run, what is cached, and what it would take.")
    ] = False,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Run every step again, cached or not.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe step by step into one folder: model, report, pictures, and the record of the run.

    A step that was done before with the same settings and inputs is not done again; an interrupted run goes on where it
    stopped.
    """
    out = Out(as_json=as_json, quiet=quiet)
    from actvar_cli.recipe.read import find, read
    from actvar_cli.recipe.run import Run

    file = read(find(recipe), settings or ())
    run = Run(
        file=file,
        path=output or Path("runs") / file.name,
        device=device,
        force=force,
        overrides=settings or (),
        argv=_argv(recipe, output, settings or [], device),
        progress=out.progress,
    )
    if dry_run:
        _show_plan(run, out)
        return
    try:
        record = run.execute()
    except KeyboardInterrupt:
        out.hint(f"stopped: the same command{' without --force' if force else ''} goes on from here")
        raise
    rows = run.table()
    data = {"table": [dict(zip(("what", "dense", "compressed"), row, strict=True)) for row in rows], **record}
    shown: list[Any] = [table("", "dense", "compressed", rows=rows)] if rows else []
    shown_files = ("model.safetensors", "model.safetensors.index.json", "var.pth", "report.html", "run.json")
    made = [name for name in shown_files if (run.path / name).is_file()]
    out.result(data, *shown, f"{run.path}: {', '.join(made)} ({took(record['seconds'])})", path=run.path)
    run.check_gates()


def _argv(recipe: str, output: Path | None, settings: list[str], device: str) -> list[str]:
    """The command that makes the same again."""
    argv = ["actvar", "run", recipe]
    argv += ["-o", str(output)] if output else []
    argv += ["--device", device] if device != "auto" else []
    return argv + [part for setting in settings for part in ("--set", setting)]


def _show_plan(run: Run, out: Out) -> None:
    from actvar_cli.profile.units import quantity
    from actvar_cli.recipe.estimate import estimate_plan

    entries = estimate_plan(run)
    rows = []
    for entry in entries:
        state = "cached" if entry["cached"] else "would run"
        if entry["seconds"] is None:
            rows.append((entry["name"], state, *(("", "", "") if entry["cached"] else ("?", "?", "?"))))
        else:
            figures = quantity(entry["disk_bytes"], "B"), quantity(entry["memory_bytes"], "B"), took(entry["seconds"])
            rows.append((entry["name"], state, *figures))
    known = [entry["seconds"] for entry in entries if entry["seconds"] is not None]
    total = f"about {took(sum(known))} on {run.device}, into {run.path}"
    if any(entry["seconds"] is None and not entry["cached"] for entry in entries):
        total += "; what is marked ? depends on a model that is not on this machine (`actvar fetch`)"
    shown = table("step", "", "disk", "memory", "time", rows=rows)
    out.result({"steps": entries, "device": run.device, "seconds": sum(known)}, shown, total, path=run.path)
