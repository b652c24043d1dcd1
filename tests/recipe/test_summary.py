"""The table at the end, and gates."""

from __future__ import annotations

from typing import Any

import pytest

from actvar_cli.errors import GateError
from actvar_cli.evaluate.evaluate import Agreement, Evaluation, Quality
from actvar_cli.profile.profile import profile
from actvar_cli.profile.units import duration, quantity
from actvar_cli.recipe.cache import RunRecord
from actvar_cli.recipe.steps import Gates
from actvar_cli.recipe.summary import check_gates, measured, metrics, table
from tests.tiny import tiny_model


def quality(**values: Any) -> Quality:
    given = {"name": "m", "threshold": None, "seconds_per_image": 0.01, "accuracy_by_class": None, **values}
    return Quality.model_validate(given)


def evaluation(distance: float | None = 0.44, floor: float | None = 0.015) -> Evaluation:
    agreement = Agreement(
        images=10,
        kl=0.1234,
        kl_by_scale=[0.1],
        token_match=0.87,
        token_match_by_scale=[0.8],
        patch_nums=(1,),
        sampled_token_match=0.2,
        pixel_difference=0.01,
    )
    return Evaluation(
        images=10,
        batch=5,
        seed=0,
        cfg=1.5,
        top_k=0,
        top_p=0.0,
        device="cpu",
        feature_network="net",
        floor=floor,
        student=quality(cost=0.702, distance=distance, accuracy=0.93),
        teacher=quality(cost=1.0, distance=0.4, accuracy=0.94),
        agreement=agreement,
        notes=[],
    )


def test_the_table_of_an_evaluation() -> None:
    assert table(None, evaluation()) == [
        ("cost, transformer", "100.0 %", "70.2 %"),
        ("Fréchet distance, real against real 0.015", "0.400", "0.440"),
        ("class accuracy", "94.0 %", "93.0 %"),
        ("token match, given the dense model's tokens", "", "87.0 %"),
        ("KL to the dense model, nats per token", "", "0.123"),
    ]
    assert table(None, None) == []


def test_quality_at_another_budget_than_the_cost_beside_it_says_so() -> None:
    found = evaluation().model_copy(update={"student": quality(cost=0.702, threshold=0.5, distance=0.44, accuracy=0.9)})
    whole = profile(tiny_model(), batch=1, repeats=1)
    same = whole.model_copy(update={"cost": 0.7, "image_cost": 0.8, "speedup": 1.2, "threshold": 0.5})
    assert all("where quality" not in row[0] for row in table(same, found))
    assert [m.shown for m in metrics(same, found) if m.kind == "cost"] == ["70.0 %", "80.0 %"]
    for update in ({"threshold": 1.0}, {"paired_scales": 2}):
        other = same.model_copy(update=update)
        assert ("cost, transformer, where quality was measured", "", "70.2 %") in table(other, found)
        assert [m.shown for m in metrics(other, found) if m.kind == "cost"] == ["70.0 %", "80.0 %", "70.2 %"]


def test_metrics_say_what_they_are() -> None:
    shown = [(m.kind, m.name, m.value, m.shown, m.dense) for m in metrics(None, evaluation())]
    assert shown == [
        ("cost", "cost, transformer, share of the dense FLOPs", 0.702, "70.2 %", "100.0 %"),
        (
            "frechet_distance",
            "Fréchet distance (net, 10 images; real against real 0.015)",
            0.44,
            "0.440",
            "0.400",
        ),
        ("accuracy", "class accuracy (net)", 0.93, "93.0 %", "94.0 %"),
        ("token_match", "token match, given the dense model's tokens", 0.87, "87.0 %", ""),
        ("kl_divergence", "KL to the dense model, nats per token", 0.1234, "0.123", ""),
    ]
    assert metrics(None, None) == []


@pytest.mark.parametrize(("network", "kind"), [("Inception v3, 2048-d", "fid"), ("net", "frechet_distance")])
def test_only_inception_features_are_called_fid(network: str, kind: str) -> None:
    found = metrics(None, evaluation().model_copy(update={"feature_network": network}))[1]
    assert found.kind == kind
    assert found.name.startswith("FID" if kind == "fid" else "Fréchet distance")


def record(made: str, exported: str, about: str) -> RunRecord:
    """A run that made a model, exported it as another file, and evaluated ``about``."""
    result = evaluation().model_dump(mode="json")
    told = {
        "actvar": "1",
        "steps": [
            {"step": "distill", "inputs": {"model": "0"}, "outputs": {"model.safetensors": made}, "result": {}},
            {"step": "evaluate", "inputs": {"model": about}, "outputs": {}, "result": result},
            {"step": "export", "inputs": {"model": made}, "outputs": {"model.safetensors": exported}, "result": {}},
        ],
    }
    return RunRecord.model_validate(told)


def test_a_run_tells_what_it_measured_of_this_model_and_no_other() -> None:
    expected = metrics(None, evaluation())
    assert measured(record("a", "b", about="a"), ["a"]) == expected
    assert measured(record("a", "b", about="a"), ["b"]) == expected
    assert measured(record("a", "b", about="c"), ["b"]) == []
    assert measured(record("a", "b", about="a"), ["c"]) == []
    assert measured(RunRecord(actvar="1"), ["a"]) == []


def test_gates() -> None:
    check_gates(evaluation(), Gates())
    check_gates(evaluation(), Gates(max_cost=0.71, max_distance_ratio=1.1001))
    with pytest.raises(GateError) as caught:
        check_gates(evaluation(), Gates(max_cost=0.7, max_distance_ratio=1.05))
    assert str(caught.value) == "gate not met: cost 0.7020 exceeds 0.7; distance ratio 1.1000 exceeds 1.05"


def test_a_gate_on_what_was_not_measured_is_not_met() -> None:
    with pytest.raises(GateError, match="the distance ratio was not measured"):
        check_gates(evaluation(distance=None), Gates(max_distance_ratio=2.0))


def test_the_table_and_the_card_of_a_profile() -> None:
    model = tiny_model(experts=True)
    model.threshold = 0.0
    found = profile(model, batch=2, repeats=1)
    dense, compressed = found.dense, found.compressed
    assert compressed is not None and found.cost and found.image_cost and found.speedup
    assert table(found, None) == [
        ("cost, transformer", "100.0 %", f"{100 * found.cost:.1f} %"),
        ("cost, whole image", "100.0 %", f"{100 * found.image_cost:.1f} %"),
        ("FLOPs per image, transformer", quantity(dense.transformer_flops), quantity(compressed.transformer_flops)),
        ("time per image", duration(dense.seconds_per_image), duration(compressed.seconds_per_image)),
        ("speed-up, measured", "1.00", f"{found.speedup:.2f}"),
    ]
    assert [(m.kind, m.value) for m in metrics(found, None)] == [
        ("cost", found.cost),
        ("cost", found.image_cost),
        ("speedup", found.speedup),
    ]
