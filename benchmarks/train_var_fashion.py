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
from actvar_cli.model.sampling import ActVAR
from actvar_cli.model.tokenizer import Tokenizer
from actvar_cli.model.var import VAR
from fashion import classifier, tokenizer, transformer
from fashion.data import download, load, to_float


@torch.no_grad()
def features(net: FeatureClassifier, images: Tensor) -> Tensor:
    """Features (N, 128) of images (N, 1, 32, 32) in [-1, 1]."""
    return torch.cat([net.features(x) for x in images.split(100)])


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

    def report(model: Tokenizer) -> str:
        some = test[0][:2000]
        real = moments(features(net, to_float(some)))
        images = torch.cat([model.decode(model.encode(to_float(x))) for x in some.split(50)])
        pixels = images.add(1).mul(127.5).round().div(127.5).sub(1)
        distance = frechet_distance(*moments(features(net, pixels)), *real)
        return f"Frechet distance of 2,000 reconstructions to their originals {distance:.4f}"

    model = Tokenizer(tokenizer.CONFIG)
    if not path.exists():
        perceptual = get_classifier(work / "perceptual.safetensors", train, epochs=2, seed=1)
        model = tokenizer.train(train[0], seconds=seconds, net=perceptual, seed=0, report=report)
        save_file(model.state_dict(), path)
    model.load_state_dict(load_file(path))
    return model.eval()


def get_transformer(
    path: Path, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], tok: Tokenizer, net: FeatureClassifier, seconds: float
) -> VAR:
    """Load the transformer at ``path``, or train it (going on from its checkpoint) and save it."""
    real = moments(features(net, to_float(test[0])))

    def report(model: VAR) -> str:
        labels = torch.arange(10).repeat(100)
        sampler = ActVAR(transformer.CONFIG, model, tok)
        images = torch.cat([sampler.sample(y, seed=i).images for i, y in enumerate(labels.split(50))])
        pixels = images.mul(255).round().div(127.5).sub(1)
        right = torch.cat([net(x).argmax(1) for x in pixels.split(100)]) == labels
        distance = frechet_distance(*moments(features(net, pixels)), *real)
        return f"1,000 samples: Frechet distance {distance:.4f}, class accuracy {right.float().mean():.4f}"

    if not path.exists():
        tokens_path = path.with_name("tokens.safetensors")
        if not tokens_path.exists():
            save_file({"tokens": transformer.tokenise(tok, train[0])}, tokens_path)
        tokens = load_file(tokens_path)["tokens"]
        checkpoint = path.with_name("transformer-checkpoint.pt")
        model = transformer.train(
            tok, tokens, train[1], seconds=seconds, seed=0, checkpoint=checkpoint, report=report
        )
        save_file(model.state_dict(), path)
    model = VAR(transformer.CONFIG)
    model.load_state_dict(load_file(path))
    return model.eval()


def main() -> None:
    """Run the phases that are not in the work folder yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for data, checkpoints and logs")
    parser.add_argument("--tokenizer-minutes", type=float, default=18)
    parser.add_argument("--transformer-minutes", type=float, default=80)
    args = parser.parse_args()
    root = download(args.work)
    train, test = load(root, "train"), load(root, "test")
    net = get_classifier(args.work / "classifier.safetensors", train, epochs=8, seed=0)
    print(f"classifier: test accuracy {classifier.accuracy(net, *test):.4f}", flush=True)
    floor = frechet_distance(*moments(features(net, to_float(train[0]))), *moments(features(net, to_float(test[0]))))
    print(f"Frechet distance of the training set to the test set {floor:.4f}", flush=True)
    tok = get_tokenizer(args.work / "tokenizer.safetensors", train, test, net, args.work, 60 * args.tokenizer_minutes)
    get_transformer(args.work / "transformer.safetensors", train, test, tok, net, 60 * args.transformer_minutes)


if __name__ == "__main__":
    main()
