"""From the text of a recipe to a checked one; everything that is wrong with it is said at once, with its position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from actvar_cli.errors import InputError, did_you_mean
from actvar_cli.recipe import overrides, wording
from actvar_cli.recipe.flow import Flow, find_flow
from actvar_cli.recipe.steps import VERBS, Recipe
from actvar_cli.recipe.text import Document, Place, Problem, parse


class RecipeError(InputError):
    """A recipe is wrong: one line for each problem, each with its position."""


@dataclass(frozen=True)
class RecipeFile:
    """A checked recipe, the text it came from, and where every step's models come from."""

    path: Path
    text: str
    recipe: Recipe
    flow: tuple[Flow, ...]
    document: Document

    @property
    def name(self) -> str:
        """What the recipe is called: its ``name``, else its file's."""
        return self.recipe.name or self.path.stem


def shipped() -> dict[str, Path]:
    """The recipes that come with actvar, by name: in the installed package, or in the clone it runs from.

    Those in a folder of their own come last.
    """
    package = Path(str(files("actvar_cli")))
    folder = next((f for f in (package / "recipes", package.parents[1] / "recipes") if f.is_dir()), None)
    found = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path)) if folder else []
    return {path.stem: path for path in found}


def find(name: str) -> Path:
    """The file of a recipe, named by its path or as a shipped one; InputError where there is none."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = shipped()
    if name in known:
        return known[name]
    if path.is_dir():
        raise InputError(f"{name} is a folder, not a recipe")
    if path.suffix or len(path.parts) > 1:
        raise InputError(f"no such file: {name}")
    raise InputError(f"unknown recipe {name!r}{did_you_mean(name, list(known))}: `actvar ls --recipes` shows them")


def read(path: Path, settings: Sequence[str] = ()) -> RecipeFile:
    """The recipe in ``path`` with the ``--set`` ``settings`` applied.

    Raises RecipeError with one line for each problem, InputError where the file cannot be read.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a recipe: it is not UTF-8 text") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    document = parse(content, str(path))
    if document.data is None:
        _raise(document)
        raise RecipeError(f"{path}:1:1: the recipe is empty")
    if not isinstance(document.data, dict):
        raise RecipeError(
            f"{document.where(())}: a recipe holds keys (version, steps), not {type(document.data).__name__}"
        )
    overrides.apply(document, settings)
    recipe = _checked(document)
    flow = find_flow(document)
    _raise(document)
    assert recipe is not None
    return RecipeFile(path, content, recipe, flow, document)


def _raise(document: Document) -> None:
    if document.problems:
        # In the order of the file, `--set` last; a problem found twice is said once.
        lines = dict.fromkeys(sorted(map(str, document.problems), key=lambda line: _order(document, line)))
        raise RecipeError("\n".join(lines))


def _order(document: Document, line: str) -> tuple[int, int]:
    start = f"{document.file}:"
    if not line.startswith(start):
        return (2**31, 0)
    row, column = line.removeprefix(start).split(":")[:2]
    return (int(row), int(column)) if row.isdigit() and column.isdigit() else (0, 0)


def _checked(document: Document) -> Recipe | None:
    try:
        return Recipe.model_validate(document.data)
    except ValidationError as error:
        document.problems += [_problem(document, e) for e in error.errors() if not wording.is_echo(e)]
        return None


def _problem(document: Document, error: ErrorDetails) -> Problem:
    place, annotation, inner = _place(error["loc"])
    kind = error["type"]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        given = error["input"].get("step") if isinstance(error["input"], dict) else None
        if given is None:
            return Problem(document.where(place), f"the step has no 'step': one of {', '.join(VERBS)}")
        near = did_you_mean(str(given), list(VERBS)) or f": one of {', '.join(VERBS)}"
        return Problem(document.where((*place, "step")), f"unknown step {given!r}{near}")
    key = next((str(part) for part in reversed(place) if isinstance(part, str)), "the recipe")
    if place and isinstance(place[-1], int):
        key = "a step" if key == "steps" else f"each of {key}"
    known = wording.keys_of(annotation, inner[:-1])
    message = wording.in_words(error, key, known)
    if kind == "missing":
        return Problem(document.where(place[:-1]), message)
    return Problem(document.where(place, key=kind == "extra_forbidden"), message)


def _place(location: tuple[int | str, ...]) -> tuple[Place, object, Place]:
    """Where an error is in the data, the model that found it, and where it is in that model."""
    if len(location) > 2 and location[0] == "steps":
        # pydantic names the chosen member of the union in between.
        return (*location[:2], *location[3:]), VERBS[str(location[2])], tuple(location[3:])
    return tuple(location), Recipe, tuple(location)
