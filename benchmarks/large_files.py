"""Peak memory and time of converting, exporting and profiling checkpoints as large as the published ones.

    python benchmarks/random_checkpoint.py 16 -o /tmp/d16
    python benchmarks/large_files.py /tmp/d16/var_d16.pth --profile

Every command runs in a process of its own. The goal: peak resident memory of at most 1.25 times the checkpoint's bytes
plus 700 MB. Then the weights, exported in the published layout, are compared with the original's. Adds to
benchmarks/results/large_files.json, under the name of the file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

import torch

from actvar_cli.weights.checkpoint import read_checkpoint

RESULT = Path(__file__).parent / "results/large_files.json"


def measured(arguments: list[str], limit: float | None, stdout: IO[str] | None = None) -> dict[str, Any]:
    """Run ``actvar`` with ``arguments``; its seconds and peak resident memory, in bytes, which ``limit`` may bound."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "actvar_cli", *arguments], stdout=stdout)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"actvar {' '.join(arguments)} failed")
    peak = usage.ru_maxrss * 1024
    bound = {"limit_bytes": round(limit), "within": peak <= limit} if limit else {}
    allowed = f" of {limit / 1e9:.2f} GB" if limit else ""
    print(f"{arguments[0]}: {seconds:.1f} s, {peak / 1e9:.2f} GB{allowed}", flush=True)
    return {"seconds": round(seconds, 1), "peak_bytes": peak, **bound}


def identical(first: Path, second: Path) -> int:
    """How many tensors two checkpoints hold, if they are the same bit by bit; SystemExit otherwise."""
    one, other = read_checkpoint(first).transformer, read_checkpoint(second).transformer
    assert one and other
    different = [key for key in {*one, *other} if key not in one or key not in other or not one[key].equal(other[key])]
    if different:
        raise SystemExit(f"{second} differs from {first} in {different[0]} and {len(different) - 1} more tensors")
    return len(one)


def profiled(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """What `measured` says of ``actvar profile``, and the FLOPs that it found."""
    output = folder / "profile.json"
    with output.open("w") as stream:
        result = measured(["profile", str(checkpoint), "--json"], None, stream)
    found = json.loads(output.read_text())
    return result | {
        "batch": found["batch"],
        "repeats": found["repeats"],
        "transformer_gmac": found["dense"]["transformer_flops"] / 2e9,
        "transformer_gmac_fvcore": found["dense"]["transformer_flops_fvcore"] / 2e9,
        "transformer_gmac_torch": found["dense"]["transformer_flops_torch"] / 2e9,
        "seconds_per_image": found["dense"]["seconds_per_image"],
    }


def main() -> None:
    """Convert, export, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--profile", action="store_true", help="profile it too, which samples several images")
    args = parser.parse_args()
    size = args.checkpoint.stat().st_size
    limit = 1.25 * size + 700e6
    result: dict[str, Any] = {
        "bytes": size,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    with tempfile.TemporaryDirectory(dir=args.checkpoint.parent) as name:
        folder = Path(name)
        model = folder / "model.safetensors"
        result["convert"] = measured(["convert", str(args.checkpoint), "--experts", "8", "-o", str(model)], limit)
        for suffix in (".safetensors", ".pth"):
            back = folder / f"back{suffix}"
            way = ["export", str(model), "--format", "var", "-o", str(back)]
            result[f"export --format var {suffix}"] = measured(way, limit)
            # Elsewhere too: a process starts with the peak of the one that it was forked from.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                result["identical_tensors"] = pool.submit(identical, args.checkpoint, back).result()
            for path in folder.glob("back*"):
                path.unlink()
        if args.profile:
            result["profile"] = profiled(args.checkpoint, folder)
        result["export --format actvar"] = measured(["export", str(model), "-o", str(folder / "out")], limit)
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.write_text(json.dumps({**results, args.checkpoint.name: result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
