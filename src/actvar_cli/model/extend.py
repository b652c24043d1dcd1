"""A model with room for more than it has."""

from __future__ import annotations

import torch

from actvar_cli.model.config import ModelConfig
from actvar_cli.model.sampling import ActVAR
from actvar_cli.model.var import VAR


def extended(model: ActVAR, config: ModelConfig) -> ActVAR:
    """A model of ``config`` with the weights of ``model``, which it shares; every parameter that is new is 0."""
    with torch.device("meta"):
        transformer = VAR(config)
    weights = model.transformer.state_dict()
    fresh = {
        key: torch.zeros(tensor.shape, dtype=tensor.dtype, device=model.device)
        for key, tensor in transformer.state_dict().items()
        if key not in weights
    }
    transformer.load_state_dict({**weights, **fresh}, assign=True)
    transformer.derive_buffers()
    return ActVAR(config, transformer.to(model.device), model.tokenizer).eval()
