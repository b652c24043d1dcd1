"""What every step does, given its settings and models: one function for each verb.

Each writes its files into the step's own folder and returns its result as JSON can hold it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actvar_cli.convert.settings import ConvertSettings
from actvar_cli.distill.settings import DistillSettings
from actvar_cli.progress import Progress
from actvar_cli.recipe import models, pictures, steps
from actvar_cli.recipe.models import Source
from actvar_cli.recipe.steps import (
    AnyStep,
    ConvertStep,
    DistillStep,
    EvaluateStep,
    ExportStep,
    ProfileStep,
    ReportStep,
    SampleSettings,
    SampleStep,
)

if TYPE_CHECKING:
    from actvar_cli.convert.convert import Converted
    from actvar_cli.distill.distill import Distilled
    from actvar_cli.evaluate.evaluate import Evaluation
    from actvar_cli.profile.profile import Profile

MODEL, HISTORY, REPORT, PICTURES = "model.safetensors", "history.json", "report.html", f"{steps.PICTURES}.png"
PUBLISHED, CHECKPOINTS = "var.pth", "*.checkpoint.safetensors"


@dataclass(frozen=True)
class Before:
    """What earlier steps found out about the model that a step is about."""

    profile: Profile | None = None
    evaluation: Evaluation | None = None
    history: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True)
class Job:
    """All that one step needs. ``key`` names what it makes, so that a training can tell its own checkpoint."""

    name: str
    folder: Path
    key: str
    seed: int
    title: str
    model: Source
    teacher: Source | None
    before: Before
    recipe: str
    command: str
    progress: Progress

    @property
    def against(self) -> Source:
        """The teacher, of a step that must have one."""
        assert self.teacher is not None, "the recipe was checked for this"
        return self.teacher


def run(step: AnyStep, job: Job) -> dict[str, Any]:
    """Do ``step`` and return its result."""
    match step:
        case ConvertStep():
            return convert(step.settings(ConvertSettings), job)
        case DistillStep():
            return distill(step.settings(DistillSettings), job)
        case ProfileStep():
            return profile(step, job)
        case EvaluateStep():
            return evaluate(step, job)
        case SampleStep():
            return sample(step.settings(SampleSettings), job)
        case ExportStep():
            return export(step, job)
        case ReportStep():
            return report(step, job)


def checkpoint_of(key: str) -> str:
    """The file in which a training that makes ``key`` keeps its state."""
    return CHECKPOINTS.replace("*", key[:16])


def split(
    source: Source, settings: ConvertSettings, *, seed: int, progress: Progress
) -> tuple[Converted, dict[str, Any]]:
    """Split the FFNs of ``source``; with the lineage of the result."""
    from actvar_cli.convert.convert import convert as convert_model

    converted = convert_model(source.open(), settings, seed=seed, progress=progress)
    made = {"step": "convert", "source": source.name, "sha256": source.sha256, "seed": seed}
    return converted, source.then({**made, **settings.model_dump(mode="json")})


def convert(settings: ConvertSettings, job: Job) -> dict[str, Any]:
    """Split the FFNs; leaves the model."""
    from actvar_cli.weights.artefact import save

    converted, lineage = split(job.model, settings, seed=job.seed, progress=job.progress)
    save(job.folder / MODEL, converted.model, lineage, force=True)
    return {
        "max_logit_difference": converted.max_logit_difference,
        "router_fit": list(converted.router_fit),
        "budgets": converted.model.budgets(),
    }


def train(
    teacher: Source,
    student: Source,
    settings: DistillSettings,
    *,
    seed: int,
    checkpoint: Path,
    progress: Progress,
) -> tuple[Distilled, dict[str, Any]]:
    """Train ``student``; with the lineage of the result. Goes on from ``checkpoint`` where there is one.

    The checkpoint is to be removed once the result is saved, and not before: a disk may be full by then.
    """
    from actvar_cli.distill.distill import distill as distill_model

    distilled = distill_model(
        teacher.open(), student.open(), settings, seed=seed, progress=progress, checkpoint=checkpoint
    )
    made = {"step": "distill", "teacher": teacher.name, "teacher_sha256": teacher.sha256, "seed": seed}
    return distilled, student.then({**made, **settings.model_dump(mode="json")})


def told(distilled: Distilled) -> dict[str, Any]:
    """What there is to say of a training; ``last`` is the last step that was for a budget, if any was."""
    steps = distilled.history
    last = next((step for step in reversed(steps) if "budget" in step), steps[-1] if steps else {})
    return {"optimiser_steps": len(distilled.history), "last": last, "budgets": distilled.model.budgets()}


def distill(settings: DistillSettings, job: Job) -> dict[str, Any]:
    """Train the student; leaves the model and the training's history."""
    from actvar_cli.weights.artefact import save

    checkpoint = job.folder / checkpoint_of(job.key)
    distilled, lineage = train(
        job.against, job.model, settings, seed=job.seed, checkpoint=checkpoint, progress=job.progress
    )
    save(job.folder / MODEL, distilled.model, lineage, force=True)
    (job.folder / HISTORY).write_text(json.dumps(distilled.history))
    checkpoint.unlink(missing_ok=True)
    return told(distilled)


def profile(step: ProfileStep, job: Job) -> dict[str, Any]:
    """Count FLOPs and measure time."""
    from actvar_cli.profile.profile import profile as profile_model

    model = job.model.open(step.dtype)
    found = profile_model(
        model,
        budget=step.budget,
        batch=step.batch_for(model.config),
        repeats=step.repeats,
        seed=job.seed,
        progress=job.progress,
    )
    return found.model_dump(mode="json")


def evaluate(step: EvaluateStep, job: Job) -> dict[str, Any]:
    """Compare with the teacher."""
    from actvar_cli.evaluate.evaluate import evaluate as evaluate_model

    teacher, model = job.against.open(), job.model.open()
    if model is teacher:
        # Of one model at two budgets: what is set on the one is not to be set on the other.
        model = copy.deepcopy(model)
    with models.at_budget(model, step.budget):
        found = evaluate_model(
            model,
            teacher,
            count=step.count,
            batch=step.batch,
            seed=job.seed,
            cfg=step.cfg,
            top_k=step.top_k,
            top_p=step.top_p,
            progress=job.progress,
        )
    return found.model_dump(mode="json")


def sample(settings: SampleSettings, job: Job) -> dict[str, Any]:
    """Leave a grid of pictures."""
    images, labels = pictures.draw(job.model.open(settings.dtype), settings, seed=job.seed, progress=job.progress)
    path = pictures.save(job.folder / f"{job.name}.png", images, labels, force=True)
    return {"file": path.name, "images": len(images), "classes": labels.unique().tolist()}


def export(step: ExportStep, job: Job) -> dict[str, Any]:
    """Leave the files of a folder to hand on, with what was measured in the model card; or the published layout."""
    from actvar_cli.recipe.summary import metrics
    from actvar_cli.weights.export import export as export_model
    from actvar_cli.weights.published import write_published

    model = job.model.open()
    if step.format == "var":
        with job.progress.task(f"writing {PUBLISHED}", 1) as task:
            write_published(job.folder / PUBLISHED, model, dtype=step.dtype, force=True)
            task.advance()
    else:
        export_model(
            model,
            job.folder,
            dtype=step.dtype,
            shard_size=step.shard_size,
            about=models.about(job.model, metrics(job.before.profile, job.before.evaluation)),
            force=True,
            progress=job.progress,
        )
    files = sorted(path.name for path in job.folder.iterdir())
    return {"format": step.format, "dtype": step.dtype, "files": files}


def report(step: ReportStep, job: Job) -> dict[str, Any]:
    """Leave the report, and its pictures of teacher (left) and student (right) as one file."""
    from actvar_cli.evaluate.pairs import sample_pairs
    from actvar_cli.profile.report import ReportData, write_report

    pairs = []
    if job.teacher is not None and job.teacher.path != job.model.path:
        with job.progress.task("sampling pictures", 1) as task:
            pairs = sample_pairs(
                job.model.open(),
                job.teacher.open(),
                seed=job.seed,
                classes=step.classes,
                per_class=step.count,
            )
            task.advance()
        _side_by_side(job.folder / PICTURES, [(pair.teacher, pair.student) for pair in pairs])
    data = ReportData(
        title=job.title,
        profile=job.before.profile,
        evaluation=job.before.evaluation,
        history=job.before.history,
        pictures=pairs,
        recipe=job.recipe,
        command=job.command,
        lineage=job.model.lineage,
        facts={"seed": str(job.seed), "model, sha256": job.model.sha256},
    )
    write_report(job.folder / REPORT, data, force=True)
    return {"file": REPORT, "pictures": PICTURES if pairs else None}


def _side_by_side(path: Path, rows: Sequence[tuple[Any, Any]]) -> None:
    """A grid with a row for each class: the teacher's pictures, a gap, the student's under the same seeds."""
    import torch

    from actvar_cli.evaluate.images import make_grid, save_grid

    count, shape = len(rows[0][0]), rows[0][0].shape[1:]
    blank = torch.full((1, *shape), 255, dtype=torch.uint8)
    images = torch.cat([part for teacher, student in rows for part in (teacher, blank, student)])
    grid = make_grid(images, columns=2 * count + 1, enlarge=pictures.enlargement(images))
    save_grid(path, grid, force=True)
