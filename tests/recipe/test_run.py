"""Running recipes on tiny models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import actvar_cli
from actvar_cli.errors import GateError, InputError
from actvar_cli.progress import Progress, Task
from actvar_cli.recipe.read import read
from actvar_cli.recipe.run import Run
from actvar_cli.weights.artefact import read_lineage
from tests.recipe.tiny_files import save_pictures

CHEAP = """\
version: 1
steps:
  - {step: sample, model: MODELS/compressed.safetensors, count: 1, name: look, dtype: bfloat16}
  - {step: profile, batch: 2, repeats: 1}
  - {step: export}
"""

WHOLE = """\
version: 1
name: whole
seed: 3
steps:
  - {step: convert, model: MODELS/dense.safetensors, experts: 4, images: 16}
  - step: distill
    images: 16
    batch: 4
    precision: 'no'
    stages: {experts: {steps: 3}, tokens: {steps: 3, rank: 4, scales: 2}}
  - {step: profile, batch: 2, repeats: 1}
  - {step: evaluate, count: 6, batch: 3}
  - {step: export}
  - {step: report, count: 1}
"""


PICTURES = """\
version: 1
steps:
  - step: distill
    teacher: MODELS/dense.safetensors
    student: MODELS/compressed.safetensors
    data: DATA
    images: 12
    batch: 4
    precision: 'no'
    stages: {experts: {steps: 1}, tokens: {steps: 0}}
"""


class Noted(Task):
    """Remembers the remarks of one task."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def advance(self, units: int = 1, note: str = "") -> None:
        if note:
            self.notes.append(note)


class Watch(Progress):
    """Remembers what was said and which tasks were opened; raises where it is told to."""

    def __init__(self, stop_at: str = "never") -> None:
        self.said: list[str] = []
        self.tasks: dict[str, Noted] = {}
        self.stop_at = stop_at

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Task]:
        self.tasks[label] = Noted()
        if label == self.stop_at:
            raise KeyboardInterrupt
        yield self.tasks[label]

    def say(self, message: str) -> None:
        self.said.append(message)

    @property
    def cached(self) -> list[str]:
        return [line.split(", ")[1].removesuffix(": cached") for line in self.said if line.endswith(": cached")]


def prepare(models: Path, folder: Path, text: str, *settings: str, stop_at: str = "never", force: bool = False) -> Run:
    path = folder / "r.yaml"
    path.write_text(text.replace("MODELS", str(models)))
    watch = Watch(stop_at)
    return Run(read(path, settings), folder / "run", device="cpu", force=force, overrides=settings, progress=watch)


def cached(run: Run) -> list[str]:
    assert isinstance(run.progress, Watch)
    return run.progress.cached


@pytest.fixture(scope="module")
def whole(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Watch]:
    """The whole pipeline, interrupted in the second stage of distillation and then gone on with."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.raises(KeyboardInterrupt):
        prepare(models, folder, WHOLE, stop_at="distilling tokens").execute()
    run = prepare(models, folder, WHOLE)
    record = run.execute()
    assert isinstance(run.progress, Watch)
    return folder, record, run.progress


def test_an_interrupted_run_goes_on_where_it_stopped(whole: tuple[Path, dict[str, Any], Watch]) -> None:
    _, record, watch = whole
    assert watch.cached == ["convert"]
    # The first stage of the training was over and is taken up as it ended, without another step.
    assert watch.tasks["distilling experts"].notes == []
    assert len(watch.tasks["distilling tokens"].notes) == 3
    assert [step["cached"] for step in record["steps"]] == [True, False, False, False, False, False]


def test_the_folder_holds_what_was_promised(whole: tuple[Path, dict[str, Any], Watch]) -> None:
    folder, record, _ = whole
    run = folder / "run"
    assert (run / "recipe.yaml").read_text() == (folder / "r.yaml").read_text()
    assert json.loads((run / "run.json").read_text()) == record
    assert {
        "model.safetensors",
        "tokenizer.safetensors",
        "config.json",
        "README.md",
        "report.html",
        "pictures.png",
    } <= {p.name for p in run.iterdir()}
    assert not list(run.rglob("*checkpoint*"))
    model = actvar_cli.load(run)
    assert model.config.default_budget == 0.7
    assert model.sample([0, 1], seed=0).images.shape == (2, 1, 6, 6)


def test_the_record_tells_how_to_make_the_same_again(whole: tuple[Path, dict[str, Any], Watch]) -> None:
    folder, record, _ = whole
    assert record["finished"] and record["seed"] == 3 and record["recipe"]["name"] == "whole"
    assert set(record["versions"]) >= {"actvar", "python", "torch"}
    distill = record["steps"][1]
    assert distill["result"]["optimiser_steps"] == 6
    assert len(distill["inputs"]["model"]) == len(distill["outputs"]["model.safetensors"]) == 64
    lineage = read_lineage(folder / "run" / "model.safetensors")
    assert [step["step"] for step in lineage["steps"]] == ["convert", "distill"]
    assert lineage["steps"][1]["seed"] == 3


def test_the_card_and_the_report_show_what_was_measured(whole: tuple[Path, dict[str, Any], Watch]) -> None:
    folder, _, _ = whole
    assert "cost, transformer" in (folder / "run" / "README.md").read_text()
    report = (folder / "run" / "report.html").read_text()
    assert "training curves" in report and "step: distill" in report


def test_a_second_run_does_nothing(models: Path, whole: tuple[Path, dict[str, Any], Watch]) -> None:
    folder, record, _ = whole
    run = prepare(models, folder, WHOLE)
    again = run.execute()
    assert cached(run) == ["convert", "distill", "profile", "evaluate", "export", "report"]
    assert [step["key"] for step in again["steps"]] == [step["key"] for step in record["steps"]]
    assert run.table()[0][0] == "cost, transformer"


def test_a_gate_ends_a_run_that_is_otherwise_whole(models: Path, whole: tuple[Path, dict[str, Any], Watch]) -> None:
    folder, _, _ = whole
    run = prepare(models, folder, WHOLE, "steps.evaluate.max_cost=0.01")
    run.execute()
    assert "evaluate" in cached(run)
    with pytest.raises(GateError, match=r"^evaluate: gate not met: cost 0\.\d+ exceeds 0\.01$"):
        run.check_gates()


def test_every_evaluation_that_misses_its_gates_is_named(models: Path, tmp_path: Path) -> None:
    step = "  - {step: evaluate, name: NAME, model: MODELS/compressed.safetensors, count: 2, max_cost: 0.01}\n"
    text = "version: 1\nsteps:\n" + step.replace("NAME", "one") + step.replace("NAME", "other")
    run = prepare(models, tmp_path, text.replace("count: 2", "count: 2, against: MODELS/dense.safetensors"))
    run.execute()
    with pytest.raises(GateError) as caught:
        run.check_gates()
    assert [line.split(": cost")[0] for line in str(caught.value).splitlines()] == [
        "one: gate not met",
        "other: gate not met",
    ]


def test_a_report_shows_the_recipe_as_it_is(models: Path, whole: tuple[Path, dict[str, Any], Watch]) -> None:
    folder, _, _ = whole
    run = prepare(models, folder, WHOLE.replace("name: whole", "name: renamed"))
    run.execute()
    assert cached(run) == ["convert", "distill", "profile", "evaluate", "export"]
    assert "name: renamed" in (run.path / "report.html").read_text()
    prepare(models, folder, WHOLE).execute()


def test_files_of_others_in_a_runs_folder_stay(models: Path, tmp_path: Path) -> None:
    run = prepare(models, tmp_path, CHEAP.replace("  - {step: export}\n", ""))
    run.execute()
    readme, weights = run.path / "README.md", run.path / "model-00001-of-00002.safetensors"
    readme.write_text("mine")
    weights.write_text("mine")
    run = prepare(models, tmp_path, CHEAP)
    record = run.execute()
    assert (readme.read_text(), weights.read_text()) == ("mine", "mine")
    assert "README.md" not in record["files"] and "model.safetensors" in record["files"]
    assert isinstance(run.progress, Watch)
    assert [line for line in run.progress.said if line.startswith("warning")] == [
        f"warning: {readme} is not of a run and stays: what this one made is {run.path / 'steps/export/README.md'}"
    ]


def test_what_is_cached_opens_no_model(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "version: 1\nsteps:\n  - {step: convert, model: MODELS/dense.safetensors, experts: 4, images: 16}\n"
    text += "  - {step: sample, count: 1, classes: [0]}\n"
    prepare(models, tmp_path, text).execute()
    run = prepare(models, tmp_path, text)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("actvar_cli.recipe.models.open_model", refuse)
    run.execute()
    assert cached(run) == ["convert", "sample"]


def test_a_forced_run_does_not_go_on_from_a_checkpoint_of_before(models: Path, tmp_path: Path) -> None:
    text = WHOLE.split("  - {step: profile")[0]
    with pytest.raises(KeyboardInterrupt):
        prepare(models, tmp_path, text, stop_at="distilling tokens").execute()
    assert list((tmp_path / "run/steps/distill").glob("*.checkpoint.safetensors"))
    with pytest.raises(KeyboardInterrupt):
        prepare(models, tmp_path, text, stop_at="sampling the teacher", force=True).execute()
    assert not list((tmp_path / "run/steps/distill").glob("*.checkpoint.safetensors"))


def test_a_changed_setting_runs_only_what_depends_on_it(models: Path, tmp_path: Path) -> None:
    prepare(models, tmp_path, CHEAP).execute()
    run = prepare(models, tmp_path, CHEAP, "steps.profile.batch=3")
    run.execute()
    # The export's model card shows the profile.
    assert cached(run) == ["look"]
    run = prepare(models, tmp_path, CHEAP, "steps.profile.batch=3", "steps.export.dtype=float16")
    run.execute()
    assert cached(run) == ["look", "profile"]
    run = prepare(models, tmp_path, CHEAP, force=True)
    run.execute()
    assert cached(run) == []


def test_a_student_is_taught_anew_where_the_pictures_have_changed(models: Path, tmp_path: Path) -> None:
    data = save_pictures(tmp_path / "data")
    text = PICTURES.replace("DATA", str(data))
    prepare(models, tmp_path, text).execute()
    run = prepare(models, tmp_path, text)
    run.execute()
    assert cached(run) == ["distill"]
    (data / "bag/0.png").rename(data / "bag/7.png")
    run = prepare(models, tmp_path, text)
    run.execute()
    assert cached(run) == []


def test_the_folder_holds_one_model_however_it_is_exported(models: Path, tmp_path: Path) -> None:
    text = CHEAP.replace("  - {step: profile, batch: 2, repeats: 1}\n", "")
    original = actvar_cli.load(models / "compressed.safetensors")
    for setting, expected in (
        ("steps.export.shard_size=60KB", "model.safetensors.index.json"),
        ("steps.export.dtype=float32", "model.safetensors"),
        ("steps.export.format=var", "var.pth"),
    ):
        run = prepare(models, tmp_path, text, setting)
        run.execute()
        weights = {p.name for p in run.path.iterdir() if p.name.startswith(("model", "var.pth"))}
        assert weights - {name for name in weights if "-of-" in name} == {expected}
        assert ("-of-" in "".join(weights)) == expected.endswith(".index.json")
        again = actvar_cli.load(run.path, budget=1.0)
        original.set_budget(1.0)
        assert again.sample([0], seed=1).tokens.equal(original.sample([0], seed=1).tokens)


def test_the_plan_knows_what_is_there(models: Path, tmp_path: Path) -> None:
    assert [p.outcome for p in prepare(models, tmp_path, CHEAP).plan()] == [None, None, None]
    assert not (tmp_path / "run").exists()
    prepare(models, tmp_path, CHEAP).execute()
    plan = prepare(models, tmp_path, CHEAP, "steps.look.count=2").plan()
    assert [p.outcome is None for p in plan] == [True, False, False]
    assert (tmp_path / "run" / "look.png").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WHOLE.replace("experts: 4", "experts: 5"), "5 experts do not divide the FFN's 128 neurons"),
        (WHOLE.replace("dense.safetensors", "dens.safetensors"), "no such file: .*dens.safetensors"),
        (CHEAP.replace("count: 1", "classes: [0, 3]"), "class 3 does not exist: the model has the classes 0 to 2"),
        (PICTURES, "no such folder: DATA"),
        (PICTURES.replace("DATA", "src"), "subfolders, the model 3 classes"),
    ],
)
def test_what_does_not_fit_the_models_is_said_before_any_work(
    models: Path, tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare(models, tmp_path, text).execute()
    assert not (tmp_path / "run").exists()


TWICE = """\
version: 1
steps:
  - {step: convert, model: MODELS/dense.safetensors, experts: 4, images: 16}
  - {step: convert, name: again, model: MODELS/dense.safetensors, experts: 4, images: 16, method: contiguous}
"""


def test_two_conversions_of_one_model_start_from_the_same(models: Path, tmp_path: Path) -> None:
    run = prepare(models, tmp_path, TWICE)
    run.execute()
    original = actvar_cli.load(models / "dense.safetensors").transformer.state_dict()
    again = actvar_cli.load(run.path / "model.safetensors").transformer.state_dict()
    assert all(again[key].equal(value) for key, value in original.items())


def test_a_card_gives_no_model_the_figures_of_another(models: Path, tmp_path: Path) -> None:
    before_training = WHOLE.replace(
        "  - {step: profile, batch: 2, repeats: 1}\n  - {step: evaluate, count: 6, batch: 3}\n", ""
    )
    before_training = before_training.replace(
        "  - step: distill\n", "  - {step: evaluate, count: 6, batch: 3}\n  - step: distill\n"
    ).replace("  - {step: report, count: 1}\n", "")
    run = prepare(models, tmp_path, before_training)
    run.execute()
    assert "eval_results" not in (run.path / "README.md").read_text()
    # The table says which model was measured last, whatever was made of it.
    assert run.table()


def test_a_model_is_compared_with_itself_at_another_budget(models: Path, tmp_path: Path) -> None:
    model = "MODELS/compressed.safetensors"
    step = f"step: evaluate, model: {model}, against: {model}, budget: 0.8, count: 4, batch: 4"
    record = prepare(models, tmp_path, f"version: 1\nsteps:\n  - {{{step}}}\n").execute()
    found = record["steps"][0]["result"]
    assert found["student"]["cost"] != found["teacher"]["cost"]
    assert found["agreement"]["kl"] > 0


def test_a_class_is_one_of_the_model_that_is_sampled(models: Path, tmp_path: Path) -> None:
    text = "version: 1\nsteps:\n  - {step: sample, model: MODELS/dense.safetensors, count: 1}\n"
    text += "  - {step: sample, name: clothes, model: var-fashion, classes: [7], count: 1}\n"
    prepare(models, tmp_path, text).execute()
    with pytest.raises(InputError, match="class 10 does not exist: the model has the classes 0 to 9"):
        prepare(models, tmp_path, text.replace("[7]", "[10]")).execute()


def test_what_an_earlier_recipe_left_at_the_top_is_gone(models: Path, tmp_path: Path) -> None:
    prepare(models, tmp_path, CHEAP, "steps.export.format=var").execute()
    (tmp_path / "run" / "mine.txt").write_text("kept")
    run = prepare(models, tmp_path, CHEAP.replace("name: look", "name: view"))
    run.execute()
    assert {p.name for p in run.path.iterdir()} == {
        *("mine.txt", "steps", "recipe.yaml", "run.json", "view.png", "README.md", "config.json"),
        *("model.safetensors", "tokenizer.safetensors"),
    }


def test_stopped_after_the_model_there_is_one_model(models: Path, tmp_path: Path) -> None:
    text = CHEAP + "  - {step: report, count: 1}\n"
    prepare(models, tmp_path, text).execute()
    text = text.replace("{step: report, count: 1}", "{step: sample, name: last, count: 1}")
    other = prepare(models, tmp_path, text, "steps.export.shard_size=60KB", stop_at="sampling")
    with pytest.raises(KeyboardInterrupt):
        other.execute()
    assert not (other.path / "model.safetensors").exists()
    assert (other.path / "model.safetensors.index.json").exists()


def test_a_forced_run_that_was_stopped_goes_on_as_one(models: Path, tmp_path: Path) -> None:
    prepare(models, tmp_path, CHEAP).execute()
    with pytest.raises(KeyboardInterrupt):
        prepare(models, tmp_path, CHEAP, stop_at="measuring time", force=True).execute()
    run = prepare(models, tmp_path, CHEAP)
    run.execute()
    assert cached(run) == ["look"]


def test_recipe_and_model_belong_together_where_a_run_is_stopped(models: Path, tmp_path: Path) -> None:
    run = prepare(models, tmp_path, CHEAP)
    run.execute()
    before = (run.path / "recipe.yaml").read_text()
    with pytest.raises(KeyboardInterrupt):
        prepare(models, tmp_path, CHEAP + "# other\n", stop_at="sampling", force=True).execute()
    assert (run.path / "recipe.yaml").read_text() == before
    assert json.loads((run.path / "run.json").read_text())["finished"]


def test_another_seed_is_another_run(models: Path, tmp_path: Path) -> None:
    first = prepare(models, tmp_path, CHEAP)
    before = first.execute()
    picture = (first.path / "look.png").read_bytes()
    assert all(planned.outcome is None for planned in prepare(models, tmp_path, CHEAP, "seed=1").plan())
    # A step's own comes before the recipe's.
    own = prepare(models, tmp_path, CHEAP, "steps.look.seed=1")
    record = own.execute()
    assert [step["seed"] for step in record["steps"]] == [1, 0, 0]
    assert [step["key"] == old["key"] for step, old in zip(record["steps"], before["steps"], strict=True)] == [
        False,
        True,
        True,
    ]
    assert (own.path / "look.png").read_bytes() != picture
