"""Models by their names: opening them, their digests, and the record of what made them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actvar_cli import __version__
from actvar_cli.errors import InputError
from actvar_cli.progress import Progress
from actvar_cli.weights.files import file_digest
from actvar_cli.weights.zoo import KNOWN, HubFile

if TYPE_CHECKING:
    from actvar_cli.model.sampling import ActVAR


def choose_device(name: str) -> str:
    """``auto`` as the best device there is; any other name as it is."""
    if name != "auto":
        return name
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def open_model(name: str, *, device: str, progress: Progress, budget: float | None = None) -> ActVAR:
    """The model of that name on ``device``, fetched with a progress bar if it is not on this machine."""
    from actvar_cli.weights.load import load, locate

    locate(name, progress=progress)
    return load(name, device=choose_device(device), budget=budget)


def file_of(name: str, progress: Progress) -> Path:
    """The file of the model of that name, fetched if it is not on this machine."""
    from actvar_cli.weights.load import locate

    return locate(name, progress=progress).path


def digest_of(name: str, progress: Progress) -> str:
    """sha256 of the model's file; the published one where it is known, which needs no file."""
    entry = KNOWN.get(name)
    if entry and isinstance(entry.transformer, HubFile) and entry.transformer.sha256:
        return entry.transformer.sha256
    path = file_of(name, progress)
    digests = [file_digest(path)]
    if path.suffix != ".safetensors":
        # A plain state dict says nothing of its tokenizer: that is whichever lies beside it.
        from actvar_cli.weights.load import TOKENIZER_FILES

        digests += [file_digest(p) for f in TOKENIZER_FILES if (p := path.parent / f).is_file() and p != path]
    return "+".join(digests)


@contextmanager
def at_budget(model: ActVAR, budget: float | None) -> Iterator[None]:
    """``model`` works at ``budget`` inside (``None``: as it is set); InputError where it cannot."""
    before = model.threshold
    try:
        if budget is not None:
            model.set_budget(budget)
    except ValueError as error:
        raise InputError(str(error)) from error
    try:
        yield
    finally:
        model.threshold = before


def lineage(source: Path, step: Mapping[str, Any]) -> dict[str, Any]:
    """What made a model: the steps that made the one in ``source``, then ``step``; and the actvar that took it."""
    from actvar_cli.weights.artefact import read_lineage

    before = read_lineage(source).get("steps", []) if source.suffix == ".safetensors" else []
    return {"actvar": __version__, "steps": [*before, dict(step)]}
