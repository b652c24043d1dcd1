"""Put what was measured into README.md and the pages of docs/, so that no figure in a table is typed by hand.

    actvar run var-fashion -o runs/var-fashion
    python benchmarks/update_docs.py runs/var-fashion

Copies the run's table and pictures to benchmarks/results/ and docs/images/, and rewrites the marked parts of the pages
from the result files in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aims_tables
from quality_tables import (
    PEERS,
    RIVALS,
    UNTRAINED,
    compared,
    demo_quality,
    draw_compared,
    draw_rivals,
    essence,
    gates,
    keys_and_values,
    reconstruction,
    student,
)
from tables import RESULTS, ROOT, markdown, named, read


def fill(page: Path, name: str, text: str) -> None:
    """Replace what stands between the markers ``name`` of ``page``."""
    marked = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    content = page.read_text()
    if not marked.search(content):
        raise SystemExit(f"{page.name} has no markers {name}:begin and {name}:end")
    page.write_text(marked.sub(lambda m: f"{m[1]}\n{text}\n\n{m[2]}", content))


def keep_demo(run: Path) -> None:
    """Copy the table of a run to the results, with what made it."""
    from actvar_cli.recipe.summary import table

    record = json.loads((run / "run.json").read_text())
    from actvar_cli.evaluate.evaluate import Evaluation
    from actvar_cli.profile.profile import Profile

    results = {step["name"]: step["result"] for step in record["steps"]}
    rows = table(Profile.model_validate(results["profile"]), Evaluation.model_validate(results["evaluate"]))
    kept = {
        "table": rows,
        "seconds": record["seconds"],
        "seconds_by_step": {step["name"]: step["seconds"] for step in record["steps"]},
        "versions": record["versions"],
        "seed": record["recipe"]["seed"],
        "processor": platform.machine(),
        "images": results["evaluate"]["images"],
    }
    (RESULTS / "demo.json").write_text(json.dumps(kept, indent=1) + "\n")
    shutil.copy(run / "pictures.png", ROOT / "docs/images/demo.png")


def demo() -> str:
    """The demo's table."""
    kept = read("demo.json")
    rows = [tuple(row) for row in kept["table"]]
    note = (
        f"{kept['images']:,} samples from each model; {kept['seconds'] / 60:.1f} minutes in all on two CPU cores "
        f"(torch {kept['versions']['torch']})."
    )
    return markdown(("", "dense", "compressed"), rows) + "\n\n" + note


def trained() -> str:
    """What the training of the embedded model reached."""
    r = read("train_var_fashion.json")
    s = r["samples"]

    def minutes(*threads: int) -> float:
        return sum(phase["seconds"] for phase in r["phases"].values() if phase["threads"] in threads) / 60

    worst = min(s["accuracy_by_class"], key=s["accuracy_by_class"].get)
    rows = [
        ("feature classifier, test accuracy", f"{r['classifier']['test_accuracy']:.4f}"),
        ("Fréchet distance, training set to test set (fixes the unit)", f"{r['floor']:.3f}"),
        ("Fréchet distance, reconstructions to the test set", f"{r['reconstruction_distance']:.3f}"),
        (f"Fréchet distance, {s['count']:,} samples to the test set, cfg 1.5", f"{s['distance']:.3f}"),
        ("class accuracy of the samples", f"{s['accuracy']:.4f}"),
        ("worst class", f"{worst}, {s['accuracy_by_class'][worst]:.3f}"),
        ("training, minutes on two CPU cores, of which on one alone", f"{minutes(1, 2):.0f}, {minutes(1):.0f}"),
    ]
    return markdown(("`var-fashion`", ""), rows)


def large_files() -> str:
    """What large checkpoints take."""
    rows = []
    for name, r in read("large_files.json").items():
        for what, m in r.items():
            if not isinstance(m, dict):
                continue
            allowed = f"{m['limit_bytes'] / 1e9:.2f} GB" if "limit_bytes" in m else ""
            checkpoint, peak = f"`{name}`, {r['bytes'] / 1e9:.2f} GB", f"{m['peak_bytes'] / 1e9:.2f} GB"
            rows.append((checkpoint, f"`{what}`", f"{m['seconds']:.0f} s", peak, allowed))
    return markdown(("checkpoint", "command", "time", "peak memory", "allowed"), rows)


def profiles() -> str:
    """What the profile of a full-size model counts."""
    rows = [
        (f"`{name}`", *(f"{p[f'transformer_gmac{who}']:.3f}" for who in ("", "_fvcore", "_torch")), str(p["batch"]))
        for name, r in read("large_files.json").items()
        if (p := r.get("profile"))
    ]
    return markdown(("GMAC per image", "own counter", "fvcore", "torch's flop_counter", "batch"), rows)


def narrower(cell: dict[str, Any]) -> str:
    """The speed-up of the narrower model that was timed in turn with a ``cell``, if one was."""
    if not (seconds := cell.get("narrower_seconds")):
        return ""
    return f"{statistics.median(d / s for d, s in zip(cell['dense_seconds'], seconds, strict=True)):.2f}"


def sparse_speed(file: str) -> str:
    """Compressed sampling beside dense."""
    r = read(file)
    rows = [
        (
            key,
            f"{cell['kind']}, {cell['cost']:.2f}",
            f"{1e3 * statistics.median(cell['dense_seconds']) / cell['batch']:.1f} ms",
            f"{1e3 * statistics.median(cell['seconds']) / cell['batch']:.1f} ms",
            f"{cell['speedup']:.2f} ({cell['slowest']:.2f} to {cell['fastest']:.2f})",
            f"{cell['efficiency']:.2f}",
            narrower(cell),
        )
        for key, run in r.items()
        for cell in run["cells"]
    ]
    header = ("shape, dtype, batch", "what is left out, cost", "dense", "compressed", "speed-up", "efficiency")
    beside = "narrower FFNs: speed-up"
    # Where it was timed at all.
    header, rows = ((*header, beside), rows) if any(row[-1] for row in rows) else (header, [row[:-1] for row in rows])
    run = next(iter(r.values()))
    note = f"Time of the transformer per image, medians; speed-up: median, and range over the rounds; {named(run)}."
    return markdown(header, rows) + "\n\n" + note


def published_shape_speed() -> str:
    """What the shipped student's way makes of a d16's time, at each cost."""
    run = read("speed.json")["d16, float32, 4"]
    rows = [
        (f"{cell['cost']:.2f}", f"{1 / cell['cost']:.2f}", f"{cell['speedup']:.2f}", f"{cell['efficiency']:.2f}")
        for cell in run["cells"]
        if cell["kind"] == "one row, experts"
    ]
    note = f"Medians, batch 4, float32; {named(run)}."
    return markdown(("cost", "speed-up promised", "measured", "efficiency"), rows) + "\n\n" + note


def deciding() -> str:
    """What routers and token gates take."""
    r = read("deciding.json")
    rows = [
        (
            f"{cell['shape']}, {cell['batch']}",
            f"{cell['kind']}, {cell['cost']:.2f}",
            f"{100 * cell['work']:.1f} %",
            f"{100 * cell['time']:.1f} %",
        )
        for cell in r["cells"]
    ]
    note = f"Float32, medians of {r['repeats']}; {named(r)}."
    return markdown(("shape, batch", "what is left out, cost", "of the work", "of the time"), rows) + "\n\n" + note


def growth(file: str) -> str:
    """Time and memory by batch and depth."""
    r = read(file)
    rows = [
        (
            key.replace(", float32", ""),
            *(seconds(1e3 * statistics.median(cell[k]) / cell["batch"]) for k in ("dense_seconds", "seconds")),
            f"{cell['speedup']:.2f}",
            *(f"{cell['peak_bytes'][k] / 1e9:.2f} GB" for k in ("dense", "sparse")),
        )
        for key, run in r.items()
        for cell in run["cells"]
    ]
    run = next(iter(r.values()))
    header = ("shape, batch", "dense", "compressed", "speed-up", "memory, dense", "compressed")
    note = f"Time of the transformer per image, memory in use at most; {run['device']}, torch {run['torch']}."
    return markdown(header, rows) + "\n\n" + note


def ways(file: str) -> str:
    """What each way of running experts takes."""
    r = read(file)
    names = list(r["cells"][0]["ms"])
    rows = [
        (
            f"{cell['width']}, {cell['rows']}",
            f"{cell['density']:.2f}",
            *(f"{cell['ms'][name]:.2f}" for name in names),
            f"{cell['density'] * min(v for k, v in cell['ms'].items() if 'all' in k) / cell['ms']['split']:.2f}",
        )
        for cell in r["cells"]
    ]
    note = f"Milliseconds for one FFN of {r['experts']} experts in {r['dtype']}, medians of {r['repeats']}; {named(r)}."
    return markdown(("width, rows", "density", *names, "efficiency of `split`"), rows) + "\n\n" + note


def products() -> str:
    """What an expert's product takes by its rows."""
    r = read("products.json")
    rows = [
        (name, *(f"{us:.2f}" for us in of["microseconds_per_row"].values()), f"{of['unseen_ms']:.1f} ms")
        for name, of in r["dtypes"].items()
    ]
    numbers = list(next(iter(r["dtypes"].values()))["microseconds_per_row"])
    note = (
        f"Microseconds for a row of the first product of an expert ({r['width']} to {r['neurons']}) by the number of "
        f"rows, and what a number takes longer for the first time; medians; {named(r)}."
    )
    return markdown(("", *numbers, "first time"), rows) + "\n\n" + note


def small_products() -> str:
    """What small products take by oneDNN and by a BLAS."""
    r = read("products_small.json")
    found = r["microseconds_onednn_and_blas"]
    rows = [(name, *(f"{one:.0f}, {blas:.0f}" for one, blas in by.values())) for name, by in found.items()]
    note = f"Microseconds of a product in float32 by its number of rows, oneDNN and BLAS; medians; {named(r)}."
    return markdown(("", *next(iter(found.values()))), rows) + "\n\n" + note


def products_of_few_bits() -> str:
    """What products take in few bits, and of weights that are kept in few."""
    r = read("products_few_bits.json")
    by_rows = r["milliseconds"]
    rows = [(way, *(f"{of[way]:.2f}" for of in by_rows.values())) for way in next(iter(by_rows.values()))]
    note = f"Milliseconds of a product ({r['width']} to {r['outputs']}) by its number of rows; medians; {named(r)}."
    return markdown(("", *by_rows), rows) + "\n\n" + note


def convolutions() -> str:
    """What the decoder's convolutions take by torch and with fewer multiplications."""
    r = read("convolutions.json")
    rows = [
        (
            f"{c['channels']} to {c['outputs']}",
            f"{c['images']} of {c['side']} x {c['side']}",
            *(f"{c[key]:.1f} ms" for key in ("torch_ms", "fewer_ms")),
            f"{c['torch_ms'] / c['fewer_ms']:.2f}",
            f"{c['largest_difference']:.0e}",
        )
        for c in r["cells"]
    ]
    note = f"Medians of {r['repeats']}; difference: the largest, relative to the largest result; {named(r)}."
    header = ("channels", "maps", "torch", "fewer multiplications", "speed-up", "difference")
    return markdown(header, rows) + "\n\n" + note


def seconds(ms: float) -> str:
    """Milliseconds in the unit that reads best."""
    return f"{ms / 1e3:.2f} s" if ms >= 100 else f"{ms:.1f} ms"


def dense_speed(*files: str) -> str:
    """Our dense sampling beside the published code's."""
    rows = [
        (
            f"d{r['depth']}, {run['batch']}, {run['dtype']}",
            *(seconds(run["image"][f"{who}_ms"]) for who in ("published", "ours")),
            *(f"{run[part]['speedup']:.2f}" for part in ("image", "transformer", "decoding")),
            f"{100 * run['equal_tokens']:.2f} %",
            # Not measured at first.
            f"{run['largest_pixel_difference']:.2g}" if "largest_pixel_difference" in run else "",
        )
        for r in map(read, files)
        for run in r["runs"]
    ]
    header = ("shape, batch, dtype", "published", "ours", "image", "transformer", "decoding", "equal tokens", "pixels")
    r = read(files[0])
    repeats = " and ".join(dict.fromkeys(str(read(file)["repeats"]) for file in files))
    note = f"Time per image, medians of {repeats}; {r['device']}, torch {r['torch']}."
    return markdown(header, rows) + "\n\n" + note


def guidance() -> str:
    """What one row that has learned guidance is worth."""
    r = read("guidance.json")
    rows = [
        (
            f"{row['rows']}, cfg {row['cfg']:g}",
            f"{row['cost']:.3f}",
            f"{row['distance']:.3f}",
            f"{100 * row['accuracy']:.1f} %",
            "" if row["kl"] is None else f"{row['kl']:.4f}",
        )
        for row in r["rows"]
    ]
    explained = ", ".join(f"{100 * share:.1f}" for share in r["explained_by_block"])
    note = (
        f"{r['count']:,} samples each; {r['steps']} steps of batch {r['batch']}; "
        f"torch {r['torch']}. Of the energy of the unconditional row's updates on the last three scales, those of the "
        f"conditional row explain, block by block, {explained} %."
    )
    return markdown(("rows", "cost", "Fréchet distance", "class accuracy", "KL to two rows"), rows) + "\n\n" + note


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {
        "demo": demo,
        "student": lambda: student("shipped.json"),
        "time": published_shape_speed,
    },
    "docs/results.md": {
        "aims-quality": aims_tables.quality,
        "aims-efficiency": aims_tables.efficiency,
        "aims-dense": aims_tables.dense,
        "demo": demo,
        "quality": demo_quality,
        "shipped": lambda: student("shipped.json", full=True),
        "gates": gates,
        "rivals": lambda: essence("quality_half.json", RIVALS),
        "untrained": lambda: essence("quality_untrained.json", UNTRAINED),
        "peers": lambda: essence("quality.json", PEERS),
        "sparse-speed": lambda: sparse_speed("speed.json"),
        "trained": trained,
    },
    "docs/ablations.md": {
        "half": lambda: compared("quality_half.json"),
        "low": lambda: compared("quality_low.json"),
        "rows": lambda: compared("quality_rows.json"),
        "reconstruction": reconstruction,
        "keys-and-values": keys_and_values,
        "guidance": guidance,
    },
    "docs/ablations-gpu.md": {
        "compared": lambda: compared("quality.json"),
    },
    "docs/speed.md": {
        "dense-speed-avx512": lambda: dense_speed("dense_speed_avx512.json"),
        "dense-speed": lambda: dense_speed("dense_speed.json"),
        "dense-speed-avx2": lambda: dense_speed("dense_speed_avx2.json"),
        "dense-speed-cuda": lambda: dense_speed("dense_speed_cuda.json", "dense_speed_cuda_d30.json"),
        "convolutions": convolutions,
        "sparse-speed-amx": lambda: sparse_speed("speed_amx.json"),
        "sparse-speed-avx2": lambda: sparse_speed("speed_avx2.json"),
        "sparse-speed-cuda": lambda: sparse_speed("speed_cuda.json"),
        "deciding": deciding,
        "growth": lambda: growth("growth.json"),
        "large-files": large_files,
        "profiles": profiles,
    },
    "docs/experts.md": {
        "ways": lambda: ways("dispatch.json"),
        "ways-bfloat16": lambda: ways("dispatch_bfloat16.json"),
        "ways-avx2": lambda: ways("dispatch_avx2.json"),
        "products": products,
        "small-products": small_products,
        "products-of-few-bits": products_of_few_bits,
    },
}
"""What stands between which markers of which page."""


def main() -> None:
    """Copy and rewrite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="folder of a run of the demo, to keep its table")
    args = parser.parse_args()
    if args.run:
        keep_demo(args.run)
    for page, tables in PAGES.items():
        for name, table in tables.items():
            fill(ROOT / page, name, table())
    draw_compared(ROOT / "docs/images/quality.png")
    draw_rivals(ROOT / "docs/images/rivals.png")


if __name__ == "__main__":
    main()
