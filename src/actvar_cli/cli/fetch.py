"""actvar fetch."""

from __future__ import annotations

from typing import Annotated

import typer

from actvar_cli.cli.options import Json, Quiet
from actvar_cli.cli.out import Out


def fetch(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A name of `actvar ls`, or hf://owner/repo[@rev][/file].")
    ],
    force: Annotated[bool, typer.Option("--force", help="Fetch again what is there.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring a known model and its tokenizer to this machine, and check that they arrived whole.

    Files go to the Hub's own cache: HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE work as usual.
    """
    out = Out(as_json=as_json, quiet=quiet)
    from actvar_cli.weights.fetch import fetch as fetch_model

    path = fetch_model(name, force=force, progress=out.progress)
    out.result({"name": name, "bytes": path.stat().st_size}, str(path), path=path)
