"""Quality, cost and time of the demo's result at more samples and seeds than the demo itself has time for.

    actvar run var-fashion -o runs/var-fashion
    python benchmarks/demo_quality.py runs/var-fashion/model.safetensors --count 5000 --seeds 0 1 2

Writes benchmarks/results/demo_quality.json: every evaluation and profile in full, and a summary over the seeds.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from statistics import mean, stdev

import torch

import actvar_cli
from actvar_cli.evaluate.evaluate import evaluate
from actvar_cli.profile.profile import profile

RESULT = Path(__file__).parent / "results/demo_quality.json"


def spread(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation (0 for a single value)."""
    return {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else 0.0}


def main() -> None:
    """Evaluate under every seed, profile once, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the compressed model")
    parser.add_argument("--against", default="var-fashion", help="the original")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    student, teacher = actvar_cli.load(args.model), actvar_cli.load(args.against)
    runs = [evaluate(student, teacher, count=args.count, seed=seed) for seed in args.seeds]
    timing = profile(student, batch=32, repeats=7)
    summary = {
        side: {
            "distance": spread([getattr(run, side).distance for run in runs]),
            "accuracy": spread([getattr(run, side).accuracy for run in runs]),
            "cost": spread([getattr(run, side).cost for run in runs]),
        }
        for side in ("teacher", "student")
    }
    result = {
        "summary": summary
        | {
            "distance_ratio": spread([run.distance_ratio for run in runs]),
            "kl": spread([run.agreement.kl for run in runs]),
            "token_match": spread([run.agreement.token_match for run in runs]),
            "speedup": timing.speedup,
        },
        "evaluations": [run.model_dump(mode="json") for run in runs],
        "profile": timing.model_dump(mode="json"),
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__},
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    main()
