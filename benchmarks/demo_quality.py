"""Quality, cost and time of the demo's result at more samples and seeds than the demo itself has time for.

    actvar run var-fashion -o runs/var-fashion
    python benchmarks/demo_quality.py runs/var-fashion/model.safetensors --budgets 0.35 0.45 --count 1000 --seeds 0 1

One file at several budgets. Writes benchmarks/results/demo_quality.json: every evaluation in full, and summaries over
the seeds.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from statistics import mean, stdev

import torch

import actvar_cli
from actvar_cli.evaluate.evaluate import Evaluation, evaluate
from actvar_cli.profile.profile import profile

RESULT = Path(__file__).parent / "results/demo_quality.json"


def spread(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation (0 for a single value)."""
    return {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else 0.0}


def summary(runs: list[Evaluation], side: str) -> dict[str, dict[str, float]]:
    """Distance, class accuracy and cost of ``teacher`` or ``student`` over the seeds."""
    return {
        what: spread([getattr(getattr(run, side), what) for run in runs]) for what in ("distance", "accuracy", "cost")
    }


def main() -> None:
    """Evaluate at every budget under every seed, profile, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the compressed model")
    parser.add_argument("--against", default="var-fashion", help="the original")
    parser.add_argument("--budgets", type=float, nargs="+", required=True)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    student, teacher = actvar_cli.load(args.model), actvar_cli.load(args.against)
    evaluations: list[Evaluation] = []
    rows = []
    for budget in args.budgets:
        student.set_budget(budget)
        runs = [evaluate(student, teacher, count=args.count, seed=seed) for seed in args.seeds]
        timing = profile(student, budget=budget, batch=50, repeats=5)
        rows.append(
            {
                "budget": budget,
                **summary(runs, "student"),
                "distance_ratio": spread([run.distance_ratio for run in runs]),
                "kl": spread([run.agreement.kl for run in runs]),
                "speedup": timing.speedup,
            }
        )
        evaluations += runs
        print(json.dumps(rows[-1]), flush=True)
    result = {
        "count": args.count,
        "seeds": args.seeds,
        "dense": summary(evaluations[: len(args.seeds)], "teacher"),
        "budgets": rows,
        "evaluations": [run.model_dump(mode="json") for run in evaluations],
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__},
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
