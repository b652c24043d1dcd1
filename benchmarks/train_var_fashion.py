"""Train the embedded teacher `var-fashion` and write its assets.

    python benchmarks/train_var_fashion.py --work /tmp/var-fashion

Downloads Fashion-MNIST (Debian package), trains the feature classifier, the tokenizer and the transformer on two CPU
cores in under three hours, and writes src/actvar_cli/assets/ and benchmarks/results/train_var_fashion.json. Every phase
is kept in the work folder and not repeated; the transformer's training goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Module

sys.path.insert(0, str(Path(__file__).parent))

from actvar_cli.evaluate.distance import frechet_distance, moments
from actvar_cli.evaluate.features import FeatureClassifier
from actvar_cli.model.sampling import ActVAR
from actvar_cli.model.tokenizer import Tokenizer
from actvar_cli.model.var import VAR
from fashion import assets, classifier, decoder, measure, tokenizer, transformer
from fashion.data import download, load

Set = tuple[Tensor, Tensor]
M = TypeVar("M", bound=Module)
ROOT = Path(__file__).parents[1]


class Phases:
    """The work folder: what is there is loaded, what is not is trained; durations are kept beside it."""

    def __init__(self, work: Path) -> None:
        self.work = work

    def seconds(self) -> dict[str, dict[str, int]]:
        """How long each phase that is done has taken, and on how many threads."""
        path = self.work / "seconds.json"
        return json.loads(path.read_text()) if path.exists() else {}  # type: ignore[no-any-return]

    def get(self, name: str, module: M, make: Callable[[], M]) -> M:
        """``module`` with the weights of phase ``name``, made by ``make()`` if they are not there yet."""
        path = self.work / f"{name}.safetensors"
        if not path.exists():
            started = time.time()
            save_file(make().state_dict(), path)
            took = {"seconds": round(time.time() - started), "threads": torch.get_num_threads()}
            done = {**self.seconds(), name: took}
            (self.work / "seconds.json").write_text(json.dumps(done))
        module.load_state_dict(load_file(path))
        return module.eval()


def main() -> None:
    """Run the phases that are not in the work folder yet, then measure and write the assets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data, checkpoints and logs")
    parser.add_argument("--tokenizer-minutes", type=float, default=28)
    parser.add_argument("--transformer-minutes", type=float, default=43)
    parser.add_argument("--corrected-minutes", type=float, default=25)
    parser.add_argument("--finish-minutes", type=float, default=17)
    parser.add_argument("--decoder-minutes", type=float, default=9)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--assets", type=Path, default=ROOT / "src/actvar_cli/assets")
    args = parser.parse_args()
    root = download(args.work)
    train, test = load(root, "train"), load(root, "test")
    phases, minute = Phases(args.work), 60.0
    some = test[0][:2000]

    # The perceptual losses have networks of their own: the one that measures is never trained against. It learns with
    # noise, since one that does not is upset by differences of 1 % of the range, which nobody sees.
    nets = [
        phases.get("perceptual", FeatureClassifier(), lambda: classifier.train(*train, epochs=2, seed=1)),
        phases.get(
            "perceptual-robust", FeatureClassifier(), lambda: classifier.train(*train, epochs=2.5, seed=5, noise=0.02)
        ),
    ]
    robust = phases.get(
        "classifier-first", FeatureClassifier(), lambda: classifier.train(*train, epochs=6, seed=3, noise=0.03)
    )
    net = phases.get(
        "classifier",
        FeatureClassifier(),
        lambda: classifier.train(*train, epochs=3, seed=4, noise=0.015, start=robust, peak=1e-3),
    )
    features = {"train": measure.features(net, train[0]), "test": measure.features(net, test[0])}
    factor = assets.scale_features(net, features["train"], features["test"])
    real = {name: moments(factor * f) for name, f in features.items()}

    def reconstruction(model: Tokenizer) -> str:
        return f"Frechet distance of 2,000 reconstructions {measure.reconstruction_distance(model, net, some):.4f}"

    tok = phases.get(
        "tokenizer",
        Tokenizer(tokenizer.CONFIG),
        lambda: tokenizer.train(
            train[0], seconds=minute * args.tokenizer_minutes, nets=nets, seed=0, report=reconstruction
        ),
    )
    tokens_path = args.work / "tokens.safetensors"
    if not tokens_path.exists():
        save_file({"tokens": transformer.tokenise(tok, train[0])}, tokens_path)
    tokens = load_file(tokens_path)["tokens"]

    def samples(model: VAR) -> str:
        found = measure.sample_quality(ActVAR(transformer.CONFIG, model, tok), net, real["test"], count=1000, seed=0)
        return f"1,000 samples: Frechet distance {found['distance']:.4f}, class accuracy {found['accuracy']:.4f}"

    def transformer_phase(name: str, minutes: float, **settings: Any) -> VAR:
        return phases.get(
            name,
            VAR(transformer.CONFIG),
            lambda: transformer.train(
                tok, tokens, train[1], seconds=minute * minutes, checkpoint=args.work / f"{name}-checkpoint.pt",
                report=samples, **settings,
            ),
        )  # fmt: skip

    # In sampling, scales see errors, since the tokens of one scale are drawn independently: the second phase puts some
    # into the inputs. That alone makes guided samples too alike; the third phase goes back to clean inputs.
    var = transformer_phase("transformer", args.transformer_minutes, seed=0)
    var = transformer_phase(
        "transformer-corrected", args.corrected_minutes, seed=0, start=var, peak=1.2e-3, images=train[0], until=0.55
    )
    var = transformer_phase("transformer-finish", args.finish_minutes, seed=7, start=var, peak=6e-4, class_dropout=0.4)
    tok = phases.get(
        "decoder",
        Tokenizer(tokenizer.CONFIG),
        lambda: decoder.refine(
            tok,
            tokens,
            train[0],
            seconds=minute * args.decoder_minutes,
            nets=nets,
            seed=0,
            report=reconstruction,
        ),
    )
    publish(args, phases, net, factor, real, tok, var, test)


def publish(
    args: argparse.Namespace,
    phases: Phases,
    net: FeatureClassifier,
    factor: float,
    real: dict[str, measure.Moments],
    tok: Tokenizer,
    var: VAR,
    test: Set,
) -> None:
    """Round the weights as they are shipped, measure them, and write everything.

    ``factor`` is what the features were scaled by, ``real`` their moments over the sets "train" and "test".
    """
    accuracy = classifier.accuracy(net, *test)
    stats = {f"{k}.{n}": v for k, pair in real.items() for n, v in zip(("mu", "cov"), pair, strict=True)}
    for module in (tok, var):
        module.half().float()
    model = ActVAR(transformer.CONFIG, var, tok).eval()
    result = {
        "classifier": {"test_accuracy": accuracy, "feature_scale": factor},
        "floor": frechet_distance(*real["train"], *real["test"]),
        "reconstruction_distance": measure.reconstruction_distance(tok, net, test[0]),
        "samples": measure.sample_quality(model, net, real["test"], count=args.samples, seed=0),
        "phases": phases.seconds(),
        "torch": torch.__version__,
    }
    lineage = {"made_by": "benchmarks/train_var_fashion.py", "torch": torch.__version__, "data": "Fashion-MNIST"}
    assets.write(args.assets, transformer.CONFIG, var, tok, net, stats, test, lineage)
    (ROOT / "benchmarks/results").mkdir(exist_ok=True)
    (ROOT / "benchmarks/results/train_var_fashion.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
