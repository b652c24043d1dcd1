"""Write what the training made as the package's assets."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from actvar_cli.evaluate.distance import frechet_distance, moments
from actvar_cli.evaluate.features import FeatureClassifier
from actvar_cli.model.config import ModelConfig, TokenizerReference
from actvar_cli.model.sampling import ActVAR
from actvar_cli.model.tokenizer import Tokenizer
from actvar_cli.model.var import VAR
from actvar_cli.weights.artefact import save

FLOOR = 0.015
"""Frechet distance of training set to test set that the features are scaled to: it fixes the unit of all distances."""

REAL_IMAGES = 400

NOTICE = """\
# var-fashion

Transformer, tokenizer, feature classifier, feature statistics and the real images in this folder were made from
Fashion-MNIST by benchmarks/train_var_fashion.py of actvar.

Fashion-MNIST: Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


@torch.no_grad()
def scale_features(net: FeatureClassifier, train: Tensor, test: Tensor) -> float:
    """Scale the features of ``net`` so that sets with features ``train`` and ``test`` (N, D) are `FLOOR` apart.

    The layer before is homogeneous and the one after is scaled back, so the classifier's answers stay the same.
    Returns the factor.
    """
    factor = math.sqrt(FLOOR / frechet_distance(*moments(train), *moments(test)))
    net.embed.weight.mul_(factor)
    net.embed.bias.mul_(factor)
    net.head.weight.div_(factor)
    return factor


def _half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.half().contiguous() if v.is_floating_point() else v.contiguous() for k, v in state.items()}


def write(
    folder: Path,
    config: ModelConfig,
    transformer: VAR,
    tokenizer: Tokenizer,
    net: FeatureClassifier,
    stats: dict[str, Tensor],
    test: tuple[Tensor, Tensor],
    lineage: dict[str, object],
) -> None:
    """Write all assets to ``folder``, weights in float16, statistics in float64."""
    folder.mkdir(parents=True, exist_ok=True)
    # The feature network keeps float32: distances are differences of large numbers.
    save_file(net.state_dict(), folder / "var-fashion-classifier.safetensors")
    save_file(stats, folder / "var-fashion-stats.safetensors")
    save_file(
        {"images": test[0][:REAL_IMAGES].contiguous(), "labels": test[1][:REAL_IMAGES].contiguous()},
        folder / "var-fashion-real.safetensors",
    )
    path = folder / "var-fashion-tokenizer.safetensors"
    save_file(_half(tokenizer.state_dict()), path)
    reference = TokenizerReference(name="var-fashion", sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    model = ActVAR(config.model_copy(update={"tokenizer_reference": reference}), transformer, tokenizer)
    save(folder / "var-fashion.safetensors", model, lineage, dtype="float16", force=True)
    (folder / "NOTICE.md").write_text(NOTICE)
    for file in folder.iterdir():
        # safetensors writes files that only their owner can read; these are installed for everybody.
        file.chmod(0o644)
