"""``--set steps.distill.lr=1e-4``: values of a recipe replaced from the command line, steps addressed by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actvar_cli.errors import did_you_mean
from actvar_cli.recipe.text import Document, Place, Problem, parse_value


def step_name(step: Any) -> str | None:
    """What a step of unchecked data is called: its ``name``, else its verb."""
    if not isinstance(step, dict):
        return None
    name = step.get("name") or step.get("step")
    return name if isinstance(name, str) else None


def apply(document: Document, settings: Sequence[str]) -> None:
    """Replace values of ``document`` in place; what cannot be replaced is added to its problems."""
    for setting in settings:
        where = f"--set {setting}"
        address, equals, text = setting.partition("=")
        keys = address.strip().split(".")
        if not equals or not all(keys):
            document.problems.append(Problem(where, "write KEY=VALUE, such as steps.distill.lr=1e-4"))
            continue
        value = parse_value(text, where)
        document.problems += value.problems
        if not value.problems:
            _replace(document, keys, value, where)


def _replace(document: Document, keys: list[str], value: Document, where: str) -> None:
    path: Place = ()
    inside = document.data
    if not isinstance(inside, dict):
        return
    names = keys[:-1]
    if names and names[0] == "steps" and isinstance(inside.get("steps"), list):
        if len(names) < 2:
            document.problems.append(Problem(where, f"name a key of step {keys[1]!r}: steps.{keys[1]}.KEY=VALUE"))
            return
        steps = inside["steps"]
        called = [step_name(step) for step in steps]
        if names[1] not in called:
            known = [name for name in called if name]
            document.problems.append(
                Problem(where, f"no step is called {names[1]!r}{did_you_mean(names[1], known)}: {', '.join(known)}")
            )
            return
        index = called.index(names[1])
        path, inside, names = ("steps", index), steps[index], names[2:]
    for name in names:
        path = (*path, name)
        inner = inside.setdefault(name, {})
        if not isinstance(inner, dict):
            document.problems.append(Problem(where, f"{name!r} holds {inner!r}, no keys"))
            return
        document.keys.setdefault(path, where)
        document.values.setdefault(path, where)
        inside = inner
    path = (*path, keys[-1])
    inside[keys[-1]] = value.data
    for place in [p for p in document.values if p[: len(path)] == path]:
        document.values.pop(place)
        document.keys.pop(place, None)
    document.keys[path] = document.values[path] = where
