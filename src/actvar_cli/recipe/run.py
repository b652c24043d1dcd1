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
from actvar_cli.progress import Progress
from actvar_cli.recipe import models, summary, work
from actvar_cli.recipe.cache import RECORD, Outcome, RunFolder, digest_json, key_of
from actvar_cli.recipe.flow import Flow, Ref
from actvar_cli.recipe.pictures import check_classes
from actvar_cli.recipe.read import RecipeFile
from actvar_cli.recipe.steps import (
    MAKES_MODEL,
    AnyStep,
    ConvertStep,
    DistillStep,
    EvaluateStep,
    Gates,
    SampleStep,
)
from actvar_cli.weights.shards import own_weights
from actvar_cli.weights.zoo import KNOWN

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

    def plan(self) -> list[Planned]:
        """What would run and what is there already; asks no network, so a step on a model not yet fetched would run."""
        self.folder.check()
        for ref in self._named():
            if _is_here(ref.name):
                self.digests[ref] = models.digest_of(ref.name, self.progress)
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
        self._check_against_models()
        with self.folder.begin(self.file.text):
            return self._execute(started, began)

    def _execute(self, started: datetime, began: float) -> dict[str, Any]:
        cached: set[str] = set()
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
            self._publish(flow)
            record = self._record(started, time.perf_counter() - began, cached)
            self.folder.write(RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        return record

    def check_gates(self) -> None:
        """Raise GateError where an evaluation of this run does not meet its gates."""
        from actvar_cli.evaluate.evaluate import Evaluation

        for flow, step in self._steps():
            if isinstance(step, EvaluateStep) and flow.name in self.outcomes:
                evaluation = Evaluation.model_validate(self.outcomes[flow.name].result)
                summary.check_gates(evaluation, step.settings(Gates))

    def config(self) -> ModelConfig | None:
        """The configuration of the recipe's first model; ``None`` where it is not on this machine."""
        first = self._named()[0]
        return self._open(first).config if first in self.digests else None

    def table(self) -> list[summary.Row]:
        """Cost, time and quality of the last model that was measured: rows of what, dense, compressed."""
        last = self.file.flow[-1]
        before = self._before(last, self.file.flow)
        return summary.table(before.profile, before.evaluation)

    def _steps(self) -> Iterable[tuple[Flow, AnyStep]]:
        return zip(self.file.flow, self.file.recipe.steps, strict=True)

    def _named(self) -> list[Ref]:
        refs = [ref for flow in self.file.flow for ref in (flow.model, flow.teacher) if ref and not ref.made_here]
        return list(dict.fromkeys(refs))

    def _check_against_models(self) -> None:
        """What only the models can tell, told before the first long step rather than in the middle of the night."""
        from actvar_cli.convert.convert import check
        from actvar_cli.distill.data import chosen_pictures

        for flow, step in self._steps():
            pending = self._cached(flow, step) is None
            if pending and isinstance(step, ConvertStep) and flow.model and not flow.model.made_here:
                check(self._open(flow.model), step.settings(ConvertSettings))
            if pending and isinstance(step, SampleStep) and step.classes:
                check_classes(step.classes, self._classes())
            if pending and isinstance(step, DistillStep) and step.data:
                chosen_pictures(self._pictures(step.data), step.images, self._classes(), self._seed(step))

    def _classes(self) -> int:
        return self._open(self._named()[0]).config.transformer.num_classes

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
            for earlier in self.file.flow[: self.file.flow.index(flow)]:
                if earlier.verb in ("profile", "evaluate"):
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
            before=self._before(flow, self.file.flow[: self.file.flow.index(flow)]),
            recipe=self.file.text,
            command=shlex.join(self.argv),
            progress=self.progress,
        )
        began = time.perf_counter()
        result = work.run(step, job)
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
        for key in [key for key in self.loaded if key[0] not in needed]:
            del self.loaded[key]

    def _before(self, flow: Flow, earlier: Sequence[Flow]) -> work.Before:
        """What steps among ``earlier`` found out about the model of ``flow``, or about any where none is about it."""

        def last(verb: str) -> dict[str, Any] | None:
            found = [f for f in earlier if f.verb == verb and f.name in self.outcomes]
            chosen = [f for f in found if f.model == flow.model] or found
            return self.outcomes[chosen[-1].name].result if chosen else None

        profile, evaluation = last("profile"), last("evaluate")
        history: list[dict[str, Any]] = []
        if flow.model and flow.model.made_here:
            path = self.folder.of_step(flow.model.name) / work.HISTORY
            history = json.loads(path.read_text()) if path.exists() else []
        return work.Before(_profile(profile), _evaluation(evaluation), history)

    def _publish(self, flow: Flow) -> None:
        """Show what a user looks for at the top of the folder; of the models, that of the last step that leaves one."""
        leave_model = [other for other in self.file.flow if other.verb in (*MAKES_MODEL, "export")]
        if flow.verb not in ("report", "sample") and flow not in leave_model[-1:]:
            return
        outputs = self.outcomes[flow.name].outputs
        for file in outputs:
            if flow.verb not in MAKES_MODEL or file.startswith("model."):
                self.folder.publish(flow.name, file)
        if flow in leave_model:
            # Of an earlier run, which left the model in other files: two models in one folder are one too many.
            self.folder.forget({name for name in own_weights(self.path) if name not in outputs})

    def _record(self, started: datetime, seconds: float, cached: set[str]) -> dict[str, Any]:
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
            "models": {ref.name: digest for ref, digest in self.digests.items()},
            "recipe": {**self.file.recipe.model_dump(mode="json"), "name": self.file.name},
            "steps": steps,
        }


def _is_here(name: str) -> bool:
    """Whether a model's digest can be had without a network."""
    if name.startswith("hf://"):
        return False
    if name not in KNOWN:
        return True
    from actvar_cli.weights.fetch import list_models

    return any(listing.name == name and listing.cached for listing in list_models())


def _profile(result: dict[str, Any] | None) -> Profile | None:
    from actvar_cli.profile.profile import Profile

    return None if result is None else Profile.model_validate(result)


def _evaluation(result: dict[str, Any] | None) -> Evaluation | None:
    from actvar_cli.evaluate.evaluate import Evaluation

    return None if result is None else Evaluation.model_validate(result)
