"""A folder that can be handed on: weights, tokenizer, configuration and model card, written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actvar_cli.model.config import TokenizerReference
from actvar_cli.model.sampling import ActVAR
from actvar_cli.progress import Progress
from actvar_cli.weights.artefact import write_tokenizer, write_transformer
from actvar_cli.weights.card import model_card
from actvar_cli.weights.files import new_folder
from actvar_cli.weights.zoo import ASSETS

WEIGHTS, TOKENIZER, CONFIG, CARD, NOTICE = (
    "model.safetensors",
    "tokenizer.safetensors",
    "config.json",
    "README.md",
    "NOTICE.md",
)
# What an export may hold, and so what another may replace: the recipe and the record of a run are passed as `files`.
NAMES = (WEIGHTS, TOKENIZER, CONFIG, CARD, NOTICE, "recipe.yaml", "run.json")


def export(
    model: ActVAR,
    folder: str | Path,
    *,
    dtype: str = "float32",
    force: bool = False,
    lineage: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float | str] | None = None,
    files: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write ``model`` to ``folder`` and return it; `load` reads it back, also after it was moved.

    ``dtype`` is that of the transformer; the tokenizer stays float32. ``metrics`` are shown in the model card in the
    order given; ``files`` are further texts by name (``recipe.yaml``, ``run.json``). Raises InputError where the folder
    holds something and ``force`` is off, or where it holds anything that is not part of an export.
    """
    folder, config = Path(folder), model.config
    with (
        new_folder(folder, replaceable={*NAMES, *(files or {})}, force=force) as temporary,
        (progress or Progress()).task(f"exporting {config.name}", 3) as task,
    ):
        reference = TokenizerReference(name=TOKENIZER, sha256=write_tokenizer(temporary / TOKENIZER, model))
        task.advance(note="tokenizer")
        stored = write_transformer(temporary / WEIGHTS, model, reference, lineage or {}, dtype=dtype)
        task.advance(note="transformer")
        (temporary / CONFIG).write_text(stored.model_dump_json(indent=2) + "\n")
        (temporary / CARD).write_text(model_card(stored, dtype=dtype, lineage=lineage or {}, metrics=metrics or {}))
        for name, text in (files or {}).items():
            (temporary / name).write_text(text)
        if _of_fashion(model) and (ASSETS / NOTICE).is_file():
            # The data set's licence asks that its notice go with whatever was made from it.
            shutil.copyfile(ASSETS / NOTICE, temporary / NOTICE)
        task.advance(note="model card")
    return folder


def _of_fashion(model: ActVAR) -> bool:
    reference = model.config.tokenizer_reference
    return "var-fashion" in (model.config.name, reference.name if reference else "")
