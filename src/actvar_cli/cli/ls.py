"""actvar ls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from actvar_cli.cli.options import Json, Quiet
from actvar_cli.cli.out import Out, table

if TYPE_CHECKING:
    from actvar_cli.weights.fetch import Listing


def ls(
    recipes: Annotated[bool, typer.Option("--recipes", help="List the recipes that come with actvar.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the known models, what they are, and which of them are on this machine.

    With --recipes: the recipes that `actvar run NAME` finds by name.
    """
    out = Out(as_json=as_json, quiet=quiet)
    if recipes:
        _recipes(out)
    else:
        _models(out)


def _models(out: Out) -> None:
    from actvar_cli.profile.units import quantity
    from actvar_cli.weights.fetch import list_models

    found = list_models()
    rows = [
        (m.name, quantity(m.size, "B") if m.size else "", f"{m.fid:.2f}" if m.fid else "", _place(m), m.what)
        for m in found
    ]
    data = [
        {
            "name": m.name,
            "what": m.what,
            "bytes": m.size,
            "fid": m.fid,
            "cached": m.cached,
            "converted": m.converted,
            "path": str(m.path) if m.path else None,
            "repo": m.source.repo if m.source else None,
            "file": m.source.file if m.source else None,
            "revision": m.source.revision if m.source else None,
            "sha256": m.source.sha256 if m.source else None,
        }
        for m in found
    ]
    shown = table("model", "size", "FID", "here", "", rows=rows)
    out.result({"models": data}, shown, names=[m.name for m in found])


def _place(model: Listing) -> str:
    if not model.cached:
        return "no"
    return "yes" if model.converted else "not converted"


def _recipes(out: Out) -> None:
    from actvar_cli.recipe.read import read, shipped

    found = {name: read(path) for name, path in shipped().items()}
    rows = [(name, file.recipe.description or "", ", ".join(f.name for f in file.flow)) for name, file in found.items()]
    data = [
        {
            "name": name,
            "path": str(file.path),
            "description": file.recipe.description,
            "steps": [f.name for f in file.flow],
        }
        for name, file in found.items()
    ]
    out.result({"recipes": data}, table("recipe", "", "steps", rows=rows), names=list(found))
