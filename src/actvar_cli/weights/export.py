"""A folder that can be handed on: weights, tokenizer, configuration and model card, written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from actvar_cli.model.config import TokenizerReference
from actvar_cli.model.sampling import ActVAR
from actvar_cli.progress import Progress
from actvar_cli.weights.artefact import described, tokenizer_tensors, transformer_tensors, write_tokenizer
from actvar_cli.weights.card import About, model_card
from actvar_cli.weights.fashion import NOTICE, notice_of
from actvar_cli.weights.files import new_folder, refuse_full_disk
from actvar_cli.weights.shards import INDEX, SHARD_SIZE, index_text, own_weights, split
from actvar_cli.weights.stream import safetensors_size, write_safetensors

WEIGHTS, TOKENIZER, CONFIG, CARD = "model.safetensors", "tokenizer.safetensors", "config.json", "README.md"
OTHERS = (TOKENIZER, CONFIG, CARD, NOTICE, "recipe.yaml", "run.json")
"""What an export may hold besides weights; the recipe and the record of a run are passed as ``files``."""


def own_files(folder: Path) -> set[str]:
    """Files that another export to ``folder`` may replace."""
    return {*OTHERS, *own_weights(folder)}


@dataclass(frozen=True)
class _File:
    """A file of an export: its ``size`` in bytes, known before it is written."""

    size: int
    write: Callable[[Path], object]


def export(
    model: ActVAR,
    folder: str | Path,
    *,
    dtype: str = "float32",
    shard_size: int = SHARD_SIZE,
    force: bool = False,
    about: About | None = None,
    files: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write ``model`` to ``folder`` and return it; `load` reads it back, also after it was moved.

    ``dtype`` is that of the transformer, which is written as several files if it is larger than ``shard_size`` bytes;
    the tokenizer stays float32. ``about`` is what the model card tells; ``files`` are further texts by name
    (``recipe.yaml``, ``run.json``). Raises InputError where the folder holds something and ``force`` is off, or where
    it holds anything that is not part of an export.
    """
    folder = Path(folder)
    # Made before anything is written: a wrong dtype is told at once, and the bytes to write are known.
    planned = plan(model, dtype=dtype, shard_size=shard_size, about=about, files=files)
    where = "make room, or write to another disk"
    refuse_full_disk(f"exporting {model.config.name}", {folder: sum(planned.values())}, where)
    with (
        new_folder(folder, replaceable=own_files(folder) | set(files or {}), force=force) as temporary,
        (progress or Progress()).task(f"exporting {model.config.name}", sum(planned.values())) as task,
    ):
        digest = write_tokenizer(temporary / TOKENIZER, model)
        task.advance(planned[TOKENIZER], note="tokenizer")
        for name, file in _files(model, digest, dtype, shard_size, about or About(), files or {}).items():
            file.write(temporary / name)
            task.advance(file.size, note=name)
    return folder


def plan(
    model: ActVAR,
    *,
    dtype: str = "float32",
    shard_size: int = SHARD_SIZE,
    about: About | None = None,
    files: Mapping[str, str] | None = None,
) -> dict[str, int]:
    """The files that `export` would write, and their bytes."""
    sizes = {TOKENIZER: safetensors_size(tokenizer_tensors(model), {"format": "pt"})}
    # Any digest is as long as any other.
    written = _files(model, "0" * 64, dtype, shard_size, about or About(), files or {})
    return sizes | {name: file.size for name, file in written.items()}


def _files(
    model: ActVAR, digest: str, dtype: str, shard_size: int, about: About, files: Mapping[str, str]
) -> dict[str, _File]:
    """Everything but the tokenizer, whose sha256 is ``digest``."""
    config, metadata = described(model, TokenizerReference(name=TOKENIZER, sha256=digest), about.lineage)
    shards = split(transformer_tensors(model, dtype), shard_size)
    found = {
        name: _File(safetensors_size(tensors, metadata), partial(write_safetensors, tensors=tensors, metadata=metadata))
        for name, tensors in shards.items()
    }
    texts = {CONFIG: config.model_dump_json(indent=2) + "\n", CARD: model_card(config, dtype=dtype, about=about)}
    if len(shards) > 1:
        texts[INDEX] = index_text(shards)
    if notice := notice_of(model):
        texts[NOTICE] = notice
    return found | {name: _text(text) for name, text in {**texts, **files}.items()}


def _text(text: str) -> _File:
    data = text.encode()
    return _File(len(data), lambda path: path.write_bytes(data))
