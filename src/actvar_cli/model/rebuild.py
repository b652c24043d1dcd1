"""A model with other parts than it has."""

from __future__ import annotations

import torch

from actvar_cli.model.config import ModelConfig
from actvar_cli.model.sampling import ActVAR
from actvar_cli.model.var import VAR


def rebuilt(model: ActVAR, config: ModelConfig) -> ActVAR:
    """A model of ``config`` with the weights of ``model``, which it shares, at the same setting.

    Every parameter that is new is 0; what ``config`` has no place for is left behind, and what both
    have is of the same shape.
    """
    with torch.device("meta"):
        transformer = VAR(config)
    weights = model.transformer.state_dict()
    transformer.load_state_dict(
        {
            key: weights[key] if key in weights else torch.zeros(blank.shape, dtype=blank.dtype, device=model.device)
            for key, blank in transformer.state_dict().items()
        },
        assign=True,
    )
    transformer.derive_buffers()
    made = ActVAR(config, transformer.to(model.device), model.tokenizer).eval()
    made.setting = model.setting
    return made
