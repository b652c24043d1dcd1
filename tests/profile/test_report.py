from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from actvar_cli.errors import InputError
from actvar_cli.evaluate.evaluate import evaluate
from actvar_cli.evaluate.pairs import sample_pairs
from actvar_cli.profile import plots
from actvar_cli.profile.profile import profile
from actvar_cli.profile.report import ReportData, render, write_report
from tests.evaluate.fashion import stand_in, tiny_fashion
from tests.tiny import tiny_model

HISTORY = [
    {"stage": stage, "step": step, "loss": 1 / (step + 1), "kl": 0.5, "cost": 0.9, "budget": 0.8, "grad_norm": 1.0}
    for stage in ("experts", "tokens")
    for step in range(30)
]


@pytest.fixture(scope="module")
def data() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        teacher, student = tiny_fashion(), tiny_fashion(sparse=True)
        student.threshold = 0.0
        return ReportData(
            title="var-fashion <compressed>",
            profile=profile(student, batch=4, repeats=2),
            evaluation=evaluate(student, teacher, count=20, batch=10),
            history=HISTORY,
            pictures=sample_pairs(student, teacher, per_class=2),
            recipe="version: 1\nsteps:\n  - convert: {experts: 8}  # <- & so on\n",
            command="actvar run var-fashion --seed 0",
            lineage={"steps": [{"convert": {"experts": 8}}]},
            facts={"seed": "0"},
        )


def test_everything_is_in_it(data: ReportData) -> None:
    html = render(data)
    headings = re.findall("<h2>(.*?)</h2>", html)
    assert headings == [
        "Pictures",
        "Where the work goes",
        "Quality",
        "Distillation",
        "How to make the same again",
    ]
    assert data.profile is not None
    assert data.profile.cost is not None
    assert f"{100 * data.profile.cost:.1f} % of the dense one&#x27;s FLOPs" in html
    assert "Fréchet distance (var-fashion classifier, 128-d)" in html
    for row in ("FLOPs per image", "time per image", "efficiency"):
        assert re.search(f"<td>[^<]*{row}", html), row
    assert "actvar run var-fashion --seed 0" in html
    assert html.count("data:image/png") == 30
    assert html.count("data:image/svg+xml") == 5
    assert "ankle boot" in html
    assert "&quot;experts&quot;: 8" in html


def test_text_is_escaped_and_tags_are_closed(data: ReportData) -> None:
    html = render(data)
    assert "<compressed>" not in html
    assert "{experts: 8}  # &lt;- &amp; so on" in html
    for tag in ("table", "figure", "tr", "td", "pre", "p", "h2"):
        assert len(re.findall(f"<{tag}[ >]", html)) == html.count(f"</{tag}>"), tag


def test_it_needs_no_network(data: ReportData) -> None:
    html = render(data)
    assert "http" not in html
    assert "<script" not in html
    assert all(source.startswith("data:image/") for source in re.findall('src="(.*?)"', html))
    assert "url(" not in html


def test_same_data_same_bytes(data: ReportData) -> None:
    assert render(data) == render(data)


def test_what_is_missing_is_left_out(data: ReportData) -> None:
    only_profile = render(ReportData(title="x", profile=data.profile))
    assert "Quality" not in re.findall("<h2>(.*?)</h2>", only_profile)
    assert "None" not in only_profile
    only_evaluation = render(ReportData(title="x", evaluation=data.evaluation))
    assert "Where the work goes" not in only_evaluation
    assert "None" not in only_evaluation


def test_dense_models_and_models_without_a_feature_network() -> None:
    dense = tiny_model()
    html = render(
        ReportData(
            title="dense", profile=profile(dense, batch=2, repeats=1), evaluation=evaluate(dense, dense, count=2)
        )
    )
    assert "tiny ran dense" in html
    assert "No feature network is shipped" in html
    assert "None" not in html


def test_written_whole_and_not_over_another(data: ReportData, tmp_path: Path) -> None:
    path = write_report(tmp_path / "report.html", data)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(InputError, match="exists"):
        write_report(path, data)
    write_report(path, data, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_nothing_to_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs a profile or an evaluation"):
        write_report(tmp_path / "report.html", ReportData(title="x"))
    assert not list(tmp_path.iterdir())


def test_training_plot_needs_losses_or_costs() -> None:
    assert plots.training([]) is None
    assert plots.training([{"step": 0, "seconds": 1.0}]) is None
    assert (plots.training([{"step": 0, "loss": -1.0}]) or "").startswith("<?xml")


def test_steps_go_on_over_the_stages() -> None:
    assert plots._steps([{"step": 0}, {"step": 1}, {"step": 0}, {"step": 1}]) == [0, 1, 2, 3]
    assert plots._running_mean([1, 2, 3, 6], ["a", "a", "a", "b"], 2) == [1, 1.5, 2.5, 6]
