"""Which models make the pictures of `var-fashion`: those with its codebook, whatever they are called."""

from __future__ import annotations

import torch
from safetensors import safe_open
from torch import Tensor

from actvar_cli.model.sampling import ActVAR
from actvar_cli.weights.zoo import ASSETS, KNOWN

NAME = "var-fashion"
NOTICE = "NOTICE.md"
"""The data set's licence asks that this go with whatever was made from it."""


def codebook() -> Tensor:
    """That of `var-fashion`, (vocab, z)."""
    with safe_open(ASSETS / str(KNOWN[NAME].tokenizer), framework="pt") as file:
        return file.get_tensor("quantize.embedding.weight")  # type: ignore[no-any-return]


def is_fashion(model: ActVAR) -> bool:
    """Whether the tokens of ``model`` mean what those of `var-fashion` do."""
    own, shipped = model.tokenizer.quantize.embedding.weight, codebook()
    return own.shape == shipped.shape and torch.equal(own, shipped.to(own))


def notice_of(model: ActVAR) -> str | None:
    """The text that has to go with ``model``, if any has to."""
    return (ASSETS / NOTICE).read_text(encoding="utf-8") if is_fashion(model) else None
