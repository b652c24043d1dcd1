"""The distill step of a recipe by itself, on models that the recipe names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actvar_cli.distill.settings import DistillSettings
from actvar_cli.errors import InputError
from actvar_cli.progress import Progress
from actvar_cli.recipe import models, work
from actvar_cli.recipe.cache import key_of
from actvar_cli.recipe.flow import Flow
from actvar_cli.recipe.read import RecipeFile
from actvar_cli.recipe.steps import DistillStep


def the_distill_step(file: RecipeFile) -> tuple[Flow, DistillStep]:
    """The one distill step of ``file``; InputError where there is not exactly one, or it names no student."""
    places = [(i, step) for i, step in enumerate(file.recipe.steps) if isinstance(step, DistillStep)]
    if len(places) != 1:
        found = "no distill step" if not places else f"{len(places)} distill steps"
        raise InputError(f"{file.path}: the recipe has {found}, `actvar distill` needs one")
    index, step = places[0]
    flow = file.flow[index]
    where = file.document.where(("steps", index))
    if flow.model is None or flow.model.made_here:
        raise InputError(
            f"{where}: step {flow.name!r} names no student: add 'student: FILE' (a converted model), "
            f"or run the whole recipe with `actvar run {file.path}`"
        )
    if flow.teacher is None or flow.teacher.made_here:
        raise InputError(f"{where}: step {flow.name!r} names no teacher: add 'teacher: MODEL' (the original)")
    return flow, step


def distill_alone(
    file: RecipeFile, chosen: tuple[Flow, DistillStep], output: Path, *, device: str, force: bool, progress: Progress
) -> dict[str, Any]:
    """Run the ``chosen`` step of ``file`` and write the student to ``output``; returns what there is to say.

    A training that was interrupted left its state beside ``output``, and goes on from there.
    """
    from actvar_cli.distill.data import find_pictures
    from actvar_cli.weights.artefact import refuse_artefact, save

    flow, step = chosen
    assert flow.model is not None and flow.teacher is not None
    device = models.choose_device(device)
    seed = file.recipe.seed if step.seed is None else step.seed
    student = models.named(flow.model.name, device=device, progress=progress)
    teacher = models.named(flow.teacher.name, device=device, progress=progress)
    settings = step.settings(DistillSettings)
    refuse_artefact(output, student.open().config, force=force)
    inputs = {"model": student.sha256, "teacher": teacher.sha256}
    if settings.data:
        inputs["data"] = find_pictures(settings.data).digest
    key = key_of("distill", {**settings.model_dump(mode="json"), "seed": seed}, inputs, device)
    checkpoint = output.parent / f".{output.name}.{work.checkpoint_of(key)}"
    distilled, lineage = work.train(teacher, student, settings, seed=seed, checkpoint=checkpoint, progress=progress)
    save(output, distilled.model, lineage, force=force)
    checkpoint.unlink(missing_ok=True)
    return {"teacher": teacher.name, "student": student.name, "seed": seed, **work.told(distilled)}
