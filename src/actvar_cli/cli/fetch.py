"""actvar fetch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from actvar_cli.cli.options import Json, Quiet
from actvar_cli.cli.out import Out, table
from actvar_cli.errors import InputError

if TYPE_CHECKING:
    from actvar_cli.weights.fetch import Planned


def fetch(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A name of `actvar ls`, or hf://owner/repo[@rev][/file].")
    ],
    force: Annotated[bool, typer.Option("--force", help="Fetch and convert again what is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say files, sizes and free space; fetch nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring a model and its tokenizer to this machine, check that they arrived whole, convert them once.

    Files go to the Hub's own cache: HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE work as usual; a .pth is then
    converted to safetensors under HF_HOME/actvar, whose path is printed. A fetch that was cut goes on where it stopped.
    """
    out = Out(as_json=as_json, quiet=quiet)
    if dry_run:
        _plan(name, force, out)
        return
    from actvar_cli.weights.fetch import fetch as fetch_model
    from actvar_cli.weights.shards import files_of

    path = fetch_model(name, force=force, progress=out.progress)
    if name.startswith("hf://"):
        from actvar_cli.weights.load import config_of, locate

        # Its tokenizer comes with it, wherever that is: in the repository, or a known model's.
        try:
            config_of(locate(name, progress=out.progress))
        except InputError as error:
            out.hint(f"fetched, but no model that can be loaded: {error}")
    size = sum(part.stat().st_size for part in files_of(path))
    out.result({"name": name, "bytes": size}, str(path), path=path)


def _plan(name: str, force: bool, out: Out) -> None:
    from actvar_cli.profile.units import quantity
    from actvar_cli.weights.fetch import plan

    planned = plan(name, force=force)
    rows = [
        (p.file.file, quantity(p.file.size, "B") if p.file.size else "?", _here(p), p.file.repo) for p in planned.files
    ]
    files = [
        {
            "repo": p.file.repo,
            "file": p.file.file,
            "revision": p.file.revision,
            "bytes": p.file.size or None,
            "sha256": p.file.sha256 or None,
            "path": str(p.path) if p.path else None,
            "bytes_arrived": p.arrived,
            "bytes_to_fetch": p.to_fetch,
            "bytes_to_convert": p.to_convert,
        }
        for p in planned.files
    ]
    fetched, converted = ("?" if n is None else quantity(n, "B") for n in (planned.to_fetch, planned.to_convert))
    out.result(
        {
            "name": name,
            "files": files,
            "bytes_to_fetch": planned.to_fetch,
            "bytes_to_convert": planned.to_convert,
            "bytes_free": planned.free,
        },
        table("file", "size", "here", "repository", rows=rows) if rows else f"{name} ships with actvar.",
        f"{fetched} to fetch, {converted} more as safetensors, {quantity(planned.free, 'B')} free.",
        names=[p.file.file for p in planned.files],
    )


def _here(planned: Planned) -> str:
    if planned.path:
        return "yes" if planned.to_convert == 0 else "not converted"
    return f"{100 * planned.arrived // planned.file.size} %" if planned.arrived else "no"
