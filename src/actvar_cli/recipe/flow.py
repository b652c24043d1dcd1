"""Which model every step works on: what a step before it made, or one that is named."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actvar_cli.errors import did_you_mean
from actvar_cli.recipe.overrides import step_name
from actvar_cli.recipe.steps import MAKES_MODEL, MEASURES, MODEL_KEYS, PICTURES, TEACHER_KEYS, VERBS
from actvar_cli.recipe.text import Document, Place, Problem
from actvar_cli.weights.zoo import KNOWN


@dataclass(frozen=True)
class Ref:
    """A model: what the step called ``name`` makes, or the one of that name."""

    name: str
    made_here: bool = False


@dataclass(frozen=True)
class Flow:
    """One step's place in the pipeline; ``teacher`` is what it compares with, if it does.

    Where a recipe is not whole, as one for `actvar distill` may be, ``model`` can be ``None``.
    """

    name: str
    verb: str
    model: Ref | None
    teacher: Ref | None


def original_of(ref: Ref | None, flow: Sequence[Flow]) -> Ref | None:
    """The named model that ``ref`` was made from in ``flow``: the one it is to be compared with, of its shape."""
    for step in reversed(flow):
        if ref is not None and ref.made_here and ref.name == step.name:
            ref = step.teacher or step.model
    return ref


def measurements(model: Ref | None, flow: Sequence[Flow]) -> list[Flow]:
    """The steps of ``flow`` that measure ``model``."""
    return [step for step in flow if step.verb in MEASURES and step.model == model]


def find_flow(document: Document) -> tuple[Flow, ...]:
    """The models of all steps, by the unchecked data, so that all problems can be reported together.

    What is wrong is added to the document's problems; steps that are no steps are left to the typed check.
    """
    steps = document.data.get("steps")
    found = _Finder(document)
    for index, raw in enumerate(steps if isinstance(steps, list) else []):
        if isinstance(raw, dict) and raw.get("step") in list(VERBS):
            found.add(index, raw)
    return tuple(found.flow)


class _Finder:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.flow: list[Flow] = []
        self.current: Ref | None = None
        self.source: Ref | None = None

    def complain(self, path: Place, message: str) -> None:
        self.document.problems.append(Problem(self.document.where(path), message))

    def add(self, index: int, raw: dict[str, Any]) -> None:
        verb, name = raw["step"], step_name(raw) or raw["step"]
        place = ("steps", index)
        if any(other.name == name for other in self.flow):
            at = (*place, "name" if raw.get("name") else "step")
            self.complain(at, f"two steps are called {name!r}: give one a 'name'")
        if verb == "sample" and name == PICTURES:
            self.complain((*place, "name"), f"{name}.png is what a report leaves: give the step another 'name'")
        key = MODEL_KEYS.get(verb, "model")
        model = self.named(raw, key, place) or self.current
        if model is None:
            self.complain(place, f"step {name!r} has no model: add '{key}', or a step that makes one before it")
        teacher = self.teacher(raw, verb, name, model, place) if verb in TEACHER_KEYS else None
        self.source = self.source or teacher or model
        if verb == "report" and model is not None and not measurements(model, self.flow):
            nothing = f"no step before it profiles or evaluates {model.name!r}"
            self.complain(place, f"step {name!r} has nothing to report: {nothing}")
        self.flow.append(Flow(name, verb, model, teacher))
        if verb in MAKES_MODEL:
            self.current = Ref(name, made_here=True)
        elif model is not None:
            self.current = model

    def teacher(self, raw: dict[str, Any], verb: str, name: str, model: Ref | None, place: Place) -> Ref | None:
        key = TEACHER_KEYS[verb]
        named = self.named(raw, key, place)
        teacher = named or self.usual_teacher(verb, model)
        # A report can do without: it then shows no pictures side by side.
        if verb != "report" and model is not None and named is None and teacher in (None, model):
            self.complain(place, f"step {name!r} has nothing to compare with: add '{key}'")
        return teacher

    def usual_teacher(self, verb: str, model: Ref | None) -> Ref | None:
        """What ``model`` was made from in this recipe, else what a report's model was evaluated against, or the source.

        A recipe may be about several models, of shapes that cannot be compared.
        """
        if model is not None and model.made_here:
            return original_of(model, self.flow)
        evaluated = [step.teacher for step in self.flow if step.verb == "evaluate" and step.model == model]
        return (evaluated or [None])[-1] if verb == "report" else self.source

    def named(self, raw: dict[str, Any], key: str, place: Place) -> Ref | None:
        """The model that ``raw`` names with ``key``; a word must be a step or a known model, a path is left alone."""
        given = raw.get(key)
        if not isinstance(given, str):
            return None
        before = {step.name: step.verb for step in self.flow}
        if given in before:
            if before[given] not in MAKES_MODEL:
                self.complain((*place, key), f"step {given!r} makes no model")
            return Ref(given, made_here=True)
        word = os.sep not in given and not Path(given).suffix and not given.startswith("hf://")
        if not given:
            self.complain((*place, key), "names no model: `actvar ls` shows the known ones")
        elif word and given not in KNOWN and not Path(given).exists():
            near = did_you_mean(given, [*KNOWN, *before])
            self.complain((*place, key), f"unknown model {given!r}{near}: `actvar ls` shows the known ones")
        return Ref(given)
