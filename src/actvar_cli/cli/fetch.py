"""actvar fetch."""

from __future__ import annotations

from typing import Annotated

import typer

from actvar_cli.cli.options import Json, Quiet
from actvar_cli.cli.out import Out, table


def fetch(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A name of `actvar ls`, or hf://owner/repo[@rev][/file].")
    ],
    force: Annotated[bool, typer.Option("--force", help="Fetch again what is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say files, sizes and free space; fetch nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring a known model and its tokenizer to this machine, and check that they arrived whole.

    Files go to the Hub's own cache: HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE work as usual.
    """
    out = Out(as_json=as_json, quiet=quiet)
    if dry_run:
        _plan(name, force, out)
        return
    from actvar_cli.weights.fetch import fetch as fetch_model

    path = fetch_model(name, force=force, progress=out.progress)
    out.result({"name": name, "bytes": path.stat().st_size}, str(path), path=path)


def _plan(name: str, force: bool, out: Out) -> None:
    from actvar_cli.profile.units import quantity
    from actvar_cli.weights.fetch import plan

    planned = plan(name)
    sizes = [p.file.size for p in planned.files if force or p.path is None]
    # Only the Hub knows the size of a file that nobody listed here, and a dry run asks no network.
    needed = sum(sizes) if all(sizes) else None
    rows = [
        (p.file.file, quantity(p.file.size, "B") if p.file.size else "?", "yes" if p.path else "no", p.file.repo)
        for p in planned.files
    ]
    files = [
        {
            "repo": p.file.repo,
            "file": p.file.file,
            "revision": p.file.revision,
            "bytes": p.file.size or None,
            "sha256": p.file.sha256 or None,
            "path": str(p.path) if p.path else None,
        }
        for p in planned.files
    ]
    out.result(
        {"name": name, "files": files, "bytes_to_fetch": needed, "bytes_free": planned.free},
        table("file", "size", "here", "repository", rows=rows) if rows else f"{name} ships with actvar.",
        f"{'?' if needed is None else quantity(needed, 'B')} to fetch, {quantity(planned.free, 'B')} free.",
        names=[p.file.file for p in planned.files],
    )
