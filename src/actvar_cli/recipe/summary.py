"""What a run comes to: one table of cost, time and quality, dense and compressed; and whether its gates are met."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actvar_cli.errors import GateError
from actvar_cli.recipe.steps import Gates

if TYPE_CHECKING:
    from actvar_cli.evaluate.evaluate import Evaluation
    from actvar_cli.profile.profile import Profile

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
    rows.append(("token match with the dense model", "", _percent(agreement.token_match)))
    rows.append(("KL to the dense model, nats per token", "", f"{agreement.kl:.3f}"))
    return rows


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def metrics(profile: Profile | None, evaluation: Evaluation | None) -> dict[str, float | str]:
    """The compressed model's measurements for its model card; the dense model's in brackets."""
    found: dict[str, float | str] = {}
    for what, dense, compressed in table(profile, evaluation):
        if compressed:
            found[what] = f"{compressed} (dense: {dense})" if dense else compressed
        elif dense:
            found[what] = dense
    return found


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
