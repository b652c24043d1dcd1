"""Running a recipe: step by step into one folder; what is there already, made from the same, is not made again."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actvar_cli.convert.settings import ConvertSettings
from actvar_cli.errors import GateError
from actvar_cli.progress import Progress
from actvar_cli.recipe import models, summary, work
from actvar_cli.recipe.cache import Outcome, RunFolder, digest_json, key_of
from actvar_cli.recipe.flow import Flow, Ref, measurements, original_of
from actvar_cli.recipe.read import RecipeFile
from actvar_cli.recipe.steps import (
    MAKES_MODEL,
    MEASURES,
    AnyStep,
    ConvertStep,
    DistillStep,
    EvaluateStep,
    Gates,
    SampleStep,
)
from actvar_cli.weights.shards import own_weights

if TYPE_CHECKING:
    from actvar_cli.distill.data import Pictures
    from actvar_cli.evaluate.evaluate import Evaluation
    from actvar_cli.model.config import ModelConfig
    from actvar_cli.model.sampling import ActVAR
    from actvar_cli.profile.profile import Profile


@dataclass(frozen=True)
class Planned:
    """A step and what is known of it beforehand: ``outcome`` if it is there already, else it would run."""

    flow: Flow
    step: AnyStep
    outcome: Outcome | None


@dataclass
class Run:
    """One recipe, one folder. ``device`` is as the user named it; ``argv`` is recorded, it decides nothing."""

    file: RecipeFile
    path: Path
    device: str = "auto"
    force: bool = False
    overrides: Sequence[str] = ()
    argv: Sequence[str] = ()
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.folder = RunFolder(self.path)
        self.device = models.choose_device(self.device)
        self.outcomes: dict[str, Outcome] = {}
        self.digests: dict[Ref, str] = {}
        self.loaded: dict[tuple[Ref, str], ActVAR] = {}
        self.pictures: dict[str, Pictures] = {}
        self.configs: dict[Ref, ModelConfig | None] = {}

    def plan(self) -> list[Planned]:
        """What would run and what is there already; asks no network, so a step on a model not yet fetched would run."""
        self.folder.check()
        for ref in self._named():
            if digest := models.digest_here(ref.name, self.progress):
                self.digests[ref] = digest
        return self._planned()

    def _planned(self) -> list[Planned]:
        planned = []
        for flow, step in self._steps():
            found = self._cached(flow, step)
            if found:
                self.outcomes[flow.name] = found
            planned.append(Planned(flow, step, found))
        return planned

    def execute(self) -> dict[str, Any]:
        """Run what is not there yet, and return the record of the run as `run.json` has it.

        Raises InputError before any work where a model, a setting or the folder does not fit.
        """
        started, began = datetime.now(UTC), time.perf_counter()
        self.folder.check()
        for ref in self._named():
            self.digests[ref] = models.digest_of(ref.name, self.progress)
        self._check_against_models(self._planned())
        # What is there is found again step by step, and told as each is reached.
        self.outcomes.clear()
        with self.folder.begin():
            if self.force:
                # All of them now: stopped and gone on with, none is to be taken for one of this run.
                for flow in self.file.flow:
                    self.folder.forget_outcome(flow.name, work.CHECKPOINTS)
            return self._execute(started, began)

    def _execute(self, started: datetime, began: float) -> dict[str, Any]:
        cached: set[str] = set()
        before, shown = self.folder.published(), set[str]()
        record: dict[str, Any] = {}
        steps = list(self._steps())
        for number, (flow, step) in enumerate(steps):
            found = self._cached(flow, step)
            heading = f"step {number + 1} of {len(steps)}, {flow.name}"
            if found:
                cached.add(flow.name)
                self.progress.say(f"{heading}: cached")
            else:
                self.progress.say(heading)
                found = self._do(flow, step)
            self.outcomes[flow.name] = found
            self._release(steps[number + 1 :])
            shown |= self._publish(flow, before | shown)
            if number + 1 == len(steps):
                # Of an earlier run, of another recipe.
                self.folder.forget(before - shown)
                before = set()
            record = self._record(started, time.perf_counter() - began, cached, before | shown)
            self.folder.record(self.file.text, record)
        return record

    def check_gates(self) -> None:
        """Raise GateError where evaluations of this run do not meet their gates, with a line for each."""
        from actvar_cli.evaluate.evaluate import Evaluation

        missed = []
        for flow, step in self._steps():
            if isinstance(step, EvaluateStep) and flow.name in self.outcomes:
                evaluation = Evaluation.model_validate(self.outcomes[flow.name].result)
                try:
                    summary.check_gates(evaluation, step.settings(Gates))
                except GateError as error:
                    missed.append(f"{flow.name}: {error}")
        if missed:
            raise GateError("\n".join(missed))

    def config(self, flow: Flow) -> ModelConfig | None:
        """The configuration of the model that ``flow`` is about; ``None`` where nothing on this machine tells it."""
        original = self._original(flow)
        if original not in self.configs:
            self.configs[original] = models.config_here(original.name)
        return self.configs[original]

    def table(self) -> list[summary.Row]:
        """Cost, time and quality of the last model that was measured: rows of what, dense, compressed."""
        measured = [flow for flow in self.file.flow if flow.verb in MEASURES]
        if not measured:
            return []
        before = self._before(measured[-1], self.file.flow)
        return summary.table(before.profile, before.evaluation)

    def _steps(self) -> Iterable[tuple[Flow, AnyStep]]:
        return zip(self.file.flow, self.file.recipe.steps, strict=True)

    def _named(self) -> list[Ref]:
        refs = [ref for flow in self.file.flow for ref in (flow.model, flow.teacher) if ref and not ref.made_here]
        return list(dict.fromkeys(refs))

    def _check_against_models(self, planned: Iterable[Planned]) -> None:
        """What only the models can tell, told before the first long step rather than in the middle of the night."""
        from actvar_cli.convert.convert import check
        from actvar_cli.distill.data import chosen_pictures
        from actvar_cli.model.sampling import check_classes

        pending = [(entry.flow, entry.step) for entry in planned if entry.outcome is None]
        for flow, step in pending:
            if isinstance(step, ConvertStep) and flow.model and not flow.model.made_here:
                check(self._open(flow.model), step.settings(ConvertSettings))
            if isinstance(step, SampleStep) and step.classes:
                check_classes(step.classes, self._classes(flow))
            if isinstance(step, DistillStep) and step.data:
                chosen_pictures(self._pictures(step.data), step.images, self._classes(flow), self._seed(step))

    def _classes(self, flow: Flow) -> int:
        return self._open(self._original(flow)).config.transformer.num_classes

    def _original(self, flow: Flow) -> Ref:
        original = original_of(flow.model, self.file.flow)
        assert original is not None, "the recipe was checked for this"
        return original

    def _pictures(self, folder: str) -> Pictures:
        from actvar_cli.distill.data import find_pictures

        # Looked at once: a large folder takes seconds.
        if folder not in self.pictures:
            self.pictures[folder] = find_pictures(folder)
        return self.pictures[folder]

    def _seed(self, step: AnyStep) -> int:
        return self.file.recipe.seed if step.seed is None else step.seed

    def _inputs(self, flow: Flow, step: AnyStep) -> dict[str, str] | None:
        """Digests of all that a step starts from; ``None`` where some of it is not there yet."""
        inputs: dict[str, str] = {}
        for role, ref in (("model", flow.model), ("teacher", flow.teacher)):
            if ref is None:
                continue
            digest = self._digest(ref)
            if digest is None:
                return None
            inputs[role] = digest
        if isinstance(step, DistillStep) and step.data:
            inputs["data"] = self._pictures(step.data).digest
        if flow.verb in ("export", "report"):
            for earlier in measurements(flow.model, self._earlier(flow)):
                if earlier.name not in self.outcomes:
                    return None
                inputs[earlier.name] = digest_json(self.outcomes[earlier.name].result)
        return inputs

    def _digest(self, ref: Ref) -> str | None:
        if not ref.made_here:
            return self.digests.get(ref)
        outcome = self.outcomes.get(ref.name)
        return outcome.outputs[work.MODEL].sha256 if outcome else None

    def _key(self, flow: Flow, step: AnyStep, inputs: dict[str, str]) -> str:
        settings = {**step.model_dump(mode="json"), "seed": self._seed(step)}
        if flow.verb == "report":
            # It shows them.
            settings |= {"title": self.file.name, "text": self.file.text, "overrides": list(self.overrides)}
        return key_of(flow.verb, settings, inputs, self.device)

    def _cached(self, flow: Flow, step: AnyStep) -> Outcome | None:
        inputs = self._inputs(flow, step)
        if self.force or inputs is None:
            return None
        outcome = self.folder.outcome(flow.name)
        return outcome if outcome and outcome.key == self._key(flow, step, inputs) else None

    def _do(self, flow: Flow, step: AnyStep) -> Outcome:
        inputs = self._inputs(flow, step)
        assert inputs is not None and flow.model is not None
        key = self._key(flow, step, inputs)
        folder = self.folder.clear(flow.name, keep=() if self.force else (work.checkpoint_of(key),))
        job = work.Job(
            name=flow.name,
            folder=folder,
            key=key,
            seed=self._seed(step),
            title=self.file.name,
            model=self._source(flow.model),
            teacher=self._source(flow.teacher) if flow.teacher else None,
            before=self._before(flow, self._earlier(flow)),
            recipe=self.file.text,
            command=shlex.join(self.argv),
            progress=self.progress,
        )
        began = time.perf_counter()
        result = work.run(step, job)
        if isinstance(step, ConvertStep):
            # Its neurons have changed places: another step is to have the model as it is in its file.
            self._forget(flow.model)
        seconds = time.perf_counter() - began
        return self.folder.finish(flow.name, key=key, verb=flow.verb, seconds=seconds, inputs=inputs, result=result)

    def _path(self, ref: Ref) -> Path:
        if ref.made_here:
            return self.folder.of_step(ref.name) / work.MODEL
        return models.file_of(ref.name, self.progress)

    def _source(self, ref: Ref) -> models.Source:
        return models.Source(ref.name, self._path(ref), self._digest(ref) or "", partial(self._open, ref))

    def _open(self, ref: Ref, dtype: str = "float32") -> ActVAR:
        if (ref, dtype) not in self.loaded:
            name = str(self._path(ref)) if ref.made_here else ref.name
            opened = models.open_model(name, device=self.device, progress=self.progress, dtype=dtype)
            self.loaded[ref, dtype] = opened
        return self.loaded[ref, dtype]

    def _release(self, coming: Sequence[tuple[Flow, AnyStep]]) -> None:
        """Let go of models that no coming step works on: three copies of a large one would not fit."""
        needed = {ref for flow, _ in coming for ref in (flow.model, flow.teacher)}
        self._forget(*({ref for ref, _ in self.loaded} - needed))

    def _forget(self, *refs: Ref) -> None:
        self.loaded = {key: model for key, model in self.loaded.items() if key[0] not in refs}

    def _earlier(self, flow: Flow) -> Sequence[Flow]:
        return self.file.flow[: self.file.flow.index(flow)]

    def _before(self, flow: Flow, steps: Sequence[Flow]) -> work.Before:
        """What those of ``steps`` found out that measured the model of ``flow``."""
        measured = measurements(flow.model, steps)

        def last(verb: str) -> dict[str, Any] | None:
            found = [step for step in measured if step.verb == verb and step.name in self.outcomes]
            return self.outcomes[found[-1].name].result if found else None

        profile, evaluation = last("profile"), last("evaluate")
        history: list[dict[str, Any]] = []
        if flow.model and flow.model.made_here:
            path = self.folder.of_step(flow.model.name) / work.HISTORY
            history = json.loads(path.read_text()) if path.exists() else []
        return work.Before(_profile(profile), _evaluation(evaluation), history)

    def _publish(self, flow: Flow, ours: set[str]) -> set[str]:
        """Show what a user looks for at the top of the folder; of the models, that of the last step that leaves one.

        Where a file of that name is none of ``ours``, which runs have shown before, it stays, and the user is told.
        """
        leave_model = [other for other in self.file.flow if other.verb in (*MAKES_MODEL, "export")]
        if flow.verb not in ("report", "sample") and flow not in leave_model[-1:]:
            return set()
        outputs = self.outcomes[flow.name].outputs
        files = {file for file in outputs if flow.verb not in MAKES_MODEL or file.startswith("model.")}
        kept = {file for file in files if not self.folder.publish(flow.name, file, ours)}
        for file in sorted(kept):
            self.progress.say(
                f"warning: {self.path / file} is not of a run and stays: "
                f"what this one made is {self.folder.of_step(flow.name) / file}"
            )
        if flow in leave_model:
            # Of an earlier run, which left the model in other files: two models in one folder are one too many.
            self.folder.forget((own_weights(self.path) & ours) - files)
        return files - kept

    def _record(self, started: datetime, seconds: float, cached: set[str], files: set[str]) -> dict[str, Any]:
        from actvar_cli.profile.report import versions

        steps = []
        for flow, step in self._steps():
            if flow.name in self.outcomes:
                outcome = self.outcomes[flow.name]
                steps.append(
                    {
                        "name": flow.name,
                        "step": flow.verb,
                        "cached": flow.name in cached,
                        "seconds": round(outcome.seconds, 3),
                        "seed": self._seed(step),
                        "key": outcome.key,
                        "inputs": outcome.inputs,
                        "outputs": {file: output.sha256 for file, output in outcome.outputs.items()},
                        "result": outcome.result,
                    }
                )
        return {
            "actvar": versions()["actvar"],
            "finished": len(steps) == len(self.file.flow),
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            "argv": list(self.argv),
            "overrides": list(self.overrides),
            "device": self.device,
            "seed": self.file.recipe.seed,
            "versions": versions(),
            "files": sorted(files),
            "models": {ref.name: digest for ref, digest in self.digests.items()},
            "recipe": {**self.file.recipe.model_dump(mode="json"), "name": self.file.name},
            "steps": steps,
        }


def _profile(result: dict[str, Any] | None) -> Profile | None:
    from actvar_cli.profile.profile import Profile

    return None if result is None else Profile.model_validate(result)


def _evaluation(result: dict[str, Any] | None) -> Evaluation | None:
    from actvar_cli.evaluate.evaluate import Evaluation

    return None if result is None else Evaluation.model_validate(result)
