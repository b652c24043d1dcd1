"""Options that several commands share, and options that are fields of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from actvar_cli.model.config import LAST_SEED

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Known name, file, folder, or hf://owner/repo[@revision][/file].")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where the result goes.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only paths or names, and no progress.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=LAST_SEED, help="Same seed, same result.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a value, as steps.distill.lr=1e-4.")
]


def option(settings: type[BaseModel], field: str, *names: str, **more: Any) -> Any:
    """The option that sets ``field``; its help is the field's description. ``more`` is for `typer.Option`."""
    description = settings.model_fields[field].description or ""
    return typer.Option(
        *(names or (f"--{field.replace('_', '-')}",)), help=f"{description[:1].upper()}{description[1:]}.", **more
    )


def one_or_each(given: str | int) -> int | list[int]:
    """A whole number (typer hands in the default as it is), or several with commas between."""
    try:
        numbers = [int(part) for part in str(given).split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{given!r} is neither a whole number nor several with commas between") from error
    return numbers if len(numbers) > 1 else numbers[0]


def default(settings: type[BaseModel], field: str) -> Any:
    """The default of that option."""
    return settings.model_fields[field].default
