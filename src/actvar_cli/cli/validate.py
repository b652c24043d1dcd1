"""actvar validate."""

from __future__ import annotations

from typing import Annotated

import typer

from actvar_cli.cli.options import Json, Quiet, Set
from actvar_cli.cli.out import Out
from actvar_cli.errors import InputError


def validate(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE", help="Files, or names of `actvar ls --recipes`.")],
    settings: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check recipes without running them: every problem of every file, each with file:line:column."""
    out = Out(as_json=as_json, quiet=quiet)
    from actvar_cli.recipe.read import find, read

    problems: list[str] = []
    valid = {}
    for name in recipes:
        try:
            path = find(name)
            valid[str(path)] = [flow.name for flow in read(path, settings or ()).flow]
        except InputError as error:
            problems += str(error).splitlines()
    if not problems or not as_json:
        lines = [f"{path}: ok ({', '.join(steps)})" for path, steps in valid.items()]
        out.result({"recipes": [{"path": path, "steps": steps} for path, steps in valid.items()]}, *lines)
    if problems:
        raise InputError("\n".join(problems))
