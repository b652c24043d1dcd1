"""What a run comes to: one table of cost, time and quality, dense and compressed; and whether its gates are met."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from pydantic import ValidationError

from actvar_cli.errors import GateError
from actvar_cli.recipe.steps import Gates
from actvar_cli.weights.card import GENERATED, Metric

if TYPE_CHECKING:
    from actvar_cli.evaluate.evaluate import Evaluation
    from actvar_cli.profile.profile import Profile
    from actvar_cli.recipe.cache import RunRecord

Row = tuple[str, str, str]


def table(profile: Profile | None, evaluation: Evaluation | None) -> list[Row]:
    """Rows of what, dense, compressed; of whatever was measured."""
    rows: list[Row] = []
    if profile:
        rows += _cost_and_time(profile)
    elif evaluation:
        rows.append(("cost, transformer", _percent(evaluation.teacher.cost), _percent(evaluation.student.cost)))
    if evaluation:
        rows += _quality(evaluation)
        if profile and (cost := evaluation.cost_beside(profile.setting)):
            rows.append((evaluation.COST_BESIDE, "", _percent(cost)))
    return rows


def _cost_and_time(profile: Profile) -> list[Row]:
    from actvar_cli.profile.units import duration, quantity

    dense, compressed = profile.dense, profile.compressed
    rows = [
        ("cost, transformer", "100.0 %", _percent(profile.cost)),
        ("cost, whole image", "100.0 %", _percent(profile.image_cost)),
        ("FLOPs per image, transformer", quantity(dense.transformer_flops), ""),
        ("time per image", duration(dense.seconds_per_image), ""),
    ]
    if compressed and profile.speedup:
        rows[2] = (*rows[2][:2], quantity(compressed.transformer_flops))
        rows[3] = (*rows[3][:2], duration(compressed.seconds_per_image))
        rows.append(("speed-up, measured", "1.00", f"{profile.speedup:.2f}"))
    return rows


def _quality(evaluation: Evaluation) -> list[Row]:
    rows: list[Row] = []
    teacher, student, agreement = evaluation.teacher, evaluation.student, evaluation.agreement
    if teacher.distance is not None and student.distance is not None:
        floor = "" if evaluation.floor is None else f", real against real {evaluation.floor:.3f}"
        rows.append((f"Fréchet distance{floor}", f"{teacher.distance:.3f}", f"{student.distance:.3f}"))
    if teacher.accuracy is not None:
        rows.append(("class accuracy", _percent(teacher.accuracy), _percent(student.accuracy)))
    rows.append(("token match, given the dense model's tokens", "", _percent(agreement.token_match)))
    rows.append(("KL to the dense model, nats per token", "", f"{agreement.kl:.3f}"))
    return rows


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def metrics(profile: Profile | None, evaluation: Evaluation | None) -> list[Metric]:
    """The model's measurements for its model card; nothing of the dense model's is given as its own."""
    found: list[Metric] = []
    if profile and profile.cost and profile.image_cost and profile.speedup:
        how = f"{profile.device}, {profile.types}, batch {profile.batch}"
        found += [
            _share("cost", "cost, transformer, share of the dense FLOPs", profile.cost, 1.0),
            _share("cost", "cost, whole image, share of the dense FLOPs", profile.image_cost, 1.0),
            Metric("speedup", f"speed-up, measured ({how})", profile.speedup, f"{profile.speedup:.2f}", "1.00"),
        ]
    elif evaluation:
        teacher, student = evaluation.teacher, evaluation.student
        found.append(_share("cost", "cost, transformer, share of the dense FLOPs", student.cost, teacher.cost))
    if evaluation:
        found += _quality_metrics(evaluation)
        if profile and (cost := evaluation.cost_beside(profile.setting)):
            found.append(_share("cost", evaluation.COST_BESIDE, cost, 1.0))
    return found


def _quality_metrics(evaluation: Evaluation) -> list[Metric]:
    teacher, student, agreement = evaluation.teacher, evaluation.student, evaluation.agreement
    network = evaluation.feature_network or ""
    real = ("fashion_mnist", "Fashion-MNIST") if "fashion" in network else ("real", "real images")
    found: list[Metric] = []
    if teacher.distance is not None and student.distance is not None:
        # Only a distance in the features of Inception may be called FID.
        inception = "inception" in network.lower()
        floor = "" if evaluation.floor is None else f"; real against real {evaluation.floor:.3f}"
        found.append(
            Metric(
                "fid" if inception else "frechet_distance",
                f"{'FID' if inception else 'Fréchet distance'} ({network}, {evaluation.images} images{floor})",
                student.distance,
                f"{student.distance:.3f}",
                f"{teacher.distance:.3f}",
                real,
            )
        )
    if teacher.accuracy is not None and student.accuracy is not None:
        found.append(_share("accuracy", f"class accuracy ({network})", student.accuracy, teacher.accuracy, real))
    return [
        *found,
        _share("token_match", "token match, given the dense model's tokens", agreement.token_match),
        Metric("kl_divergence", "KL to the dense model, nats per token", agreement.kl, f"{agreement.kl:.3f}"),
    ]


def _share(
    kind: str, name: str, value: float, dense: float | None = None, dataset: tuple[str, str] = GENERATED
) -> Metric:
    return Metric(kind, name, value, _percent(value), _percent(dense), dataset)


def measured(record: RunRecord, digests: Collection[str]) -> list[Metric]:
    """What a run measured of the model whose files have these sha256s."""
    from actvar_cli.evaluate.evaluate import Evaluation
    from actvar_cli.profile.profile import Profile

    # An export is of the model it was made from, although its file is another.
    made = [step for step in record.steps if set(digests) & set(step.outputs.values())]
    known = {*digests, *(step.inputs["model"] for step in made if step.step == "export" and "model" in step.inputs)}
    found = {step.step: step.result for step in record.steps if step.inputs.get("model") in known}
    try:
        return metrics(
            Profile.model_validate(found["profile"]) if "profile" in found else None,
            Evaluation.model_validate(found["evaluate"]) if "evaluate" in found else None,
        )
    except ValidationError:
        return []  # Another version of actvar measured other things.


def check_gates(evaluation: Evaluation, gates: Gates) -> None:
    """Raise GateError naming every gate that ``evaluation`` does not meet."""
    missed = []
    if gates.max_cost is not None and evaluation.student.cost > gates.max_cost:
        missed.append(f"cost {evaluation.student.cost:.4f} exceeds {gates.max_cost:g}")
    ratio = evaluation.distance_ratio
    if gates.max_distance_ratio is not None:
        if ratio is None:
            missed.append("the distance ratio was not measured: no feature network is shipped for these pictures")
        elif ratio > gates.max_distance_ratio:
            missed.append(f"distance ratio {ratio:.4f} exceeds {gates.max_distance_ratio:g}")
    if missed:
        raise GateError(f"gate not met: {'; '.join(missed)}")
