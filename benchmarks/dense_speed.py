"""Dense sampling against the published implementation: same weights, same seeds, in turn, in one run.

    git clone https://github.com/FoundationVision/VAR /tmp/published
    OMP_NUM_THREADS=2 python benchmarks/dense_speed.py --published /tmp/published
    python benchmarks/dense_speed.py --published /tmp/published --device cuda --batches 1 8 64

Weights are random, in the shapes of d16. In float32 the tokens must be equal; the published code's bfloat16 is that of
torch.autocast, ours is `dtype="bfloat16"`, and the share of equal tokens is counted, each against float32 as well.
Writes benchmarks/results/dense_speed.json (dense_speed_cuda.json on a GPU).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

# As the command line does, before torch first needs memory.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch
from torch import Tensor, nn

from actvar_cli.model.device import device_name
from actvar_cli.model.precision import DTYPES, set_dtype
from actvar_cli.model.sampling import ActVAR, balanced_labels
from actvar_cli.profile.timing import in_turn
from actvar_cli.progress import Progress, Task
from actvar_cli.weights.load import build
from actvar_cli.weights.zoo import published_config

RESULTS = Path(__file__).parent / "results"


class Printed(Task):
    """One line for each measurement, on stderr."""

    def advance(self, units: int = 1, note: str = "") -> None:
        """Print the note."""
        if note:
            print(f"  {note}", file=sys.stderr, flush=True)


class PrintedProgress(Progress):
    """Says on stderr what is being measured."""

    @contextlib.contextmanager
    def task(self, label: str, total: int) -> Iterator[Task]:
        """A task whose notes are printed."""
        print(f"{label}:", file=sys.stderr, flush=True)
        yield Printed()


class Published:
    """The published model with random weights, and how it is sampled."""

    def __init__(self, checkout: Path, depth: int, device: torch.device) -> None:
        sys.path.insert(0, str(checkout))
        self.module = importlib.import_module("models.var")
        with device:
            tokenizer = importlib.import_module("models.vqvae").VQVAE(ch=160, z_channels=32)
            self.var: Any = self.module.VAR(
                tokenizer, depth=depth, embed_dim=64 * depth, num_heads=depth, attn_l2_norm=True, norm_eps=1e-6
            )
        generator = torch.Generator(device).manual_seed(0)
        for part in (self.var, tokenizer):
            randomise(part, generator)
        self.var.to(device).eval()
        self.tokenizer: Any = tokenizer.to(device).eval()
        self.var.rng = torch.Generator(device)

    @torch.inference_mode()
    def sample(self, labels: Tensor, seed: int, dtype: torch.dtype) -> Tensor:
        """Images of ``labels``, under autocast where ``dtype`` is not float32."""
        with torch.autocast(labels.device.type, dtype, enabled=dtype != torch.float32):
            return self.var.autoregressive_infer_cfg(len(labels), labels, g_seed=seed)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def decode(self, latent: Tensor, dtype: torch.dtype) -> Tensor:
        """Images of latents."""
        with torch.autocast(latent.device.type, dtype, enabled=dtype != torch.float32):
            return self.tokenizer.fhat_to_img(latent)  # type: ignore[no-any-return]

    def tokens(self, labels: Tensor, seed: int, dtype: torch.dtype) -> Tensor:
        """The tokens (B, L) behind the images, which the published code keeps to itself."""
        drawn: list[Tensor] = []
        original = self.module.sample_with_top_k_top_p_

        def recording(*args: Any, **kwargs: Any) -> Tensor:
            drawn.append(original(*args, **kwargs))
            return drawn[-1]

        self.module.sample_with_top_k_top_p_ = recording  # type: ignore[attr-defined]
        try:
            self.sample(labels, seed, dtype)
        finally:
            self.module.sample_with_top_k_top_p_ = original  # type: ignore[attr-defined]
        return torch.cat([index.squeeze(-1) for index in drawn], 1)


@torch.no_grad()
def randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Random weights with which every block matters and nothing overflows."""
    for name, weight in module.named_parameters():
        if name.endswith("scale_mul_1H11"):
            continue
        value = torch.randn(weight.shape, generator=generator, device=generator.device)
        if weight.ndim >= 2 and not name.startswith("pos"):
            value *= 0.7 / weight[0].numel() ** 0.5
        else:
            value *= 0.05
        weight.copy_(value + 1 if "norm" in name and name.endswith("weight") else value)


def ours_of(published: Published, depth: int, dtype: str) -> ActVAR:
    """The same weights in our model."""
    model = build(
        published_config(depth), published.var.state_dict(), published.tokenizer.state_dict(), "the published model"
    )
    return set_dtype(model, dtype)


def equal_share(a: Tensor, b: Tensor) -> float:
    """Share of positions at which the tokens are the same."""
    return float((a == b).double().mean())


def pixel_difference(a: Tensor, b: Tensor) -> float:
    """The largest difference of images in [-1, 1], in levels of 255."""
    return 127.5 * float((a.clamp(-1, 1) - b.float().clamp(-1, 1)).abs().max())


def milliseconds(seconds: list[float], batch: int) -> float:
    """The median, per image."""
    return 1e3 * median(seconds) / batch


@torch.inference_mode()
def compare(
    published: Published, ours: ActVAR, labels: Tensor, dtype: str, repeats: int, exact: Tensor
) -> dict[str, Any]:
    """Tokens and times of both, for one batch and type; ``exact`` (B, L) are the tokens of float32 under seed 0."""
    batch, target = len(labels), DTYPES[dtype]
    mine, theirs = ours.sample(labels, seed=0).tokens, published.tokens(labels, 0, target)
    if dtype == "float32" and not torch.equal(mine, theirs):
        raise SystemExit(f"the tokens differ in float32, batch {batch}: {equal_share(mine, theirs):.4f} are equal")
    latent = ours.tokenizer.quantize.accumulate(ours.tokenizer.split(mine))[-1]
    ways: dict[str, dict[str, Callable[[int], object]]] = {
        "image": {
            "ours": lambda seed: ours.sample(labels, seed=seed),
            "published": lambda seed: published.sample(labels, seed, target),
        },
        "decoding": {
            "ours": lambda _: ours.tokenizer.decode_latent(latent),
            "published": lambda _: published.decode(latent, target),
        },
    }
    result: dict[str, Any] = {
        "batch": batch,
        "dtype": dtype,
        "equal_tokens": equal_share(mine, theirs),
        "equal_tokens_ours_float32": equal_share(mine, exact),
        "equal_tokens_published_float32": equal_share(theirs, exact),
        "largest_pixel_difference": pixel_difference(
            ours.tokenizer.decode_latent(latent), published.decode(latent, target)
        ),
    }
    for what, pair in ways.items():
        label = f"{what}, batch {batch}, {dtype}"
        measured = in_turn(pair, repeats=repeats, device=labels.device, progress=PrintedProgress(), label=label)
        times = {name: milliseconds(of.seconds, batch) for name, of in measured.items()}
        result[what] = {
            "ours_ms": times["ours"],
            "published_ms": times["published"],
            "speedup": times["published"] / times["ours"],
            "fastest_ms": {name: 1e3 * min(of.seconds) / batch for name, of in measured.items()},
            "seconds": {name: of.seconds for name, of in measured.items()},
        }
    whole, decoding = result["image"], result["decoding"]
    transformer = {name: whole[f"{name}_ms"] - decoding[f"{name}_ms"] for name in ("ours", "published")}
    result["transformer"] = {
        **{f"{name}_ms": value for name, value in transformer.items()},
        "speedup": transformer["published"] / transformer["ours"],
    }
    return result


def main() -> None:
    """Time every batch and type, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, required=True, help="a checkout of the published code")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    published = Published(args.published, args.depth, device)
    labels = {batch: balanced_labels(batch, 1000).to(device) for batch in args.batches}
    exact = {batch: published.tokens(of, 0, torch.float32) for batch, of in labels.items()}
    runs = []
    for dtype in args.dtypes:
        ours = ours_of(published, args.depth, dtype).to(device)
        for batch, of in labels.items():
            runs.append(compare(published, ours, of, dtype, args.repeats, exact[batch]))
            last = runs[-1]
            print(
                f"batch {batch}, {dtype}: ours {last['image']['ours_ms']:.0f} ms per image, "
                f"published {last['image']['published_ms']:.0f}, {last['image']['speedup']:.2f} times as fast "
                f"(transformer {last['transformer']['speedup']:.2f}, decoding {last['decoding']['speedup']:.2f}); "
                f"{100 * last['equal_tokens']:.2f} % of the tokens are equal"
            )
    result = {
        "device": device_name(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "depth": args.depth,
        "repeats": args.repeats,
        "runs": runs,
    }
    output = args.output or RESULTS / f"dense_speed{'' if device.type == 'cpu' else '_' + device.type}.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
