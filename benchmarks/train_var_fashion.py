"""Train the embedded teacher `var-fashion` and write its assets.

    python benchmarks/train_var_fashion.py --work /tmp/var-fashion

Downloads Fashion-MNIST (Debian package), trains the feature classifier, the tokenizer and the transformer on two CPU
cores in under three hours, and writes src/actvar_cli/assets/. Every phase is kept in the work folder and not repeated.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from actvar_cli.evaluate.distance import frechet_distance, moments
from actvar_cli.evaluate.features import FeatureClassifier
from actvar_cli.model.tokenizer import Tokenizer
from fashion import classifier, tokenizer
from fashion.data import download, load, to_float


@torch.no_grad()
def features(net: FeatureClassifier, images: Tensor) -> Tensor:
    """Features (N, 128) of images (N, 1, 32, 32) in [-1, 1]."""
    return torch.cat([net.features(x) for x in images.split(500)])


def get_classifier(path: Path, train: tuple[Tensor, Tensor], epochs: float, seed: int) -> FeatureClassifier:
    """Load the classifier at ``path``, or train and save it."""
    model = FeatureClassifier()
    if not path.exists():
        model = classifier.train(*train, epochs=epochs, seed=seed)
        save_file(model.state_dict(), path)
    model.load_state_dict(load_file(path))
    return model.eval()


def get_tokenizer(
    path: Path, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], net: FeatureClassifier, work: Path, seconds: float
) -> Tokenizer:
    """Load the tokenizer at ``path``, or train and save it."""
    real = moments(features(net, to_float(test[0])))

    def report(model: Tokenizer) -> str:
        images = torch.cat([model.decode(model.encode(to_float(x))) for x in test[0].split(500)])
        pixels = images.add(1).mul(127.5).round().div(127.5).sub(1)
        distance = frechet_distance(*moments(features(net, pixels)), *real)
        return f"Frechet distance of reconstructions to the test set {distance:.4f}"

    model = Tokenizer(tokenizer.CONFIG)
    if not path.exists():
        perceptual = get_classifier(work / "perceptual.safetensors", train, epochs=2, seed=1)
        model = tokenizer.train(train[0], seconds=seconds, net=perceptual, seed=0, report=report)
        save_file(model.state_dict(), path)
    model.load_state_dict(load_file(path))
    return model.eval()


def main() -> None:
    """Run the phases that are not in the work folder yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for data, checkpoints and logs")
    parser.add_argument("--tokenizer-minutes", type=float, default=18)
    args = parser.parse_args()
    root = download(args.work)
    train, test = load(root, "train"), load(root, "test")
    net = get_classifier(args.work / "classifier.safetensors", train, epochs=8, seed=0)
    print(f"classifier: test accuracy {classifier.accuracy(net, *test):.4f}", flush=True)
    floor = frechet_distance(*moments(features(net, to_float(train[0]))), *moments(features(net, to_float(test[0]))))
    print(f"Frechet distance of the training set to the test set {floor:.4f}", flush=True)
    get_tokenizer(args.work / "tokenizer.safetensors", train, test, net, args.work, 60 * args.tokenizer_minutes)


if __name__ == "__main__":
    main()
