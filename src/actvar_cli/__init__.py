"""Give a pretrained VAR (next-scale image generation) less work per image, at the same quality.

From Python::

    model = actvar_cli.load("model.safetensors", budget=0.8)
    images = model.sample([3, 7], seed=0).images

The command line is in `actvar_cli.cli`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actvar_cli.model.sampling import ActVAR

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(name: str | Path, *, device: str = "cpu", budget: float | None = None, dtype: str = "float32") -> ActVAR:
    """A model by its name: a known one, a file, a folder, or ``hf://owner/repo[@revision][/file]``.

    ``budget`` is the share of the dense model's FLOPs to work at; by default the one the model was made for.
    ``dtype`` is ``float32``, ``bfloat16`` or ``float16``; a model that is not in float32 is for sampling, not training.
    Raises `errors.InputError`, one line, for whatever is wrong with the name, the file or the options.
    """
    # Imported here: `import actvar_cli` and `actvar --help` must not wait for torch.
    from actvar_cli.weights.load import load as load_model

    return load_model(name, device=device, budget=budget, dtype=dtype)
