"""Which parts of a model run in fewer bits, and which never do."""

from __future__ import annotations

import torch
from torch import nn

from actvar_cli.errors import InputError, did_you_mean
from actvar_cli.model.sampling import ActVAR

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types that weights can be stored in, and kept in while a model is at work."""

FULL = (
    "router.fc2",
    "router.scores",
    "token_gate.fc2",
    "token_gate.scores",
    "attn.scale_mul_1H11",
    "ffn.expert_mean",
    "ada_gss",
)
"""Of a block, what stays float32: a decision must not turn on a score's rounding, and the rest costs nothing."""


def dtype_called(name: str) -> torch.dtype:
    """One of `DTYPES`; InputError for another name."""
    if name not in DTYPES:
        raise InputError(f"unknown dtype {name!r}{did_you_mean(name, list(DTYPES))}: one of {', '.join(DTYPES)}")
    return DTYPES[name]


def set_dtype(model: ActVAR, dtype: str) -> ActVAR:
    """Let ``model`` keep its weights in ``dtype`` (one of `DTYPES`), in place; it must be in float32 before.

    These are the weights of the transformer but for its embeddings and head, and those of the tokenizer's decoder.
    Products with them are computed in that type, and keys and values kept in it, too, where that is faster
    (`products.product_dtype`); else in float32. The residual stream, AdaLN's parameters, scores of routers and token
    gates, logits, sampling and the quantiser always are float32. Raises InputError for another type.
    """
    target = dtype_called(dtype)
    if target == torch.float32:
        return model
    for block in model.transformer.stack:
        _cast(block, target)
        block.attn.zero_k_bias = block.attn.zero_k_bias.to(target)
    for changed in model.transformer.delta.blocks if model.config.delta else ():
        _cast(changed, target)
    if model.config.transformer.shared_aln:
        _cast(model.transformer.shared_ada_lin, target)
    _cast(model.tokenizer.decoder, target)
    # What stays as it was is part of a file that is mapped as a whole as long as anything of it is.
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype == torch.float32:
            tensor.data = tensor.data.clone()
    return model


def _cast(module: nn.Module, target: torch.dtype) -> None:
    # One by one, so that what is given up is never in memory together.
    for name, parameter in module.named_parameters():
        if not name.startswith(FULL):
            parameter.data = parameter.data.to(target)
