"""Models by their names: opening them, their digests, and the record of what made them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actvar_cli import __version__
from actvar_cli.errors import InputError, NotHereError
from actvar_cli.progress import Progress
from actvar_cli.weights.zoo import KNOWN, HubFile, ZooEntry, base_of, published_config, what_is_old

if TYPE_CHECKING:
    from actvar_cli.model.config import ModelConfig
    from actvar_cli.model.sampling import ActVAR
    from actvar_cli.weights.card import About, Metric
    from actvar_cli.weights.load import Source as Located


def choose_device(name: str) -> str:
    """``auto`` as the best device there is; any other name as it is, if there is such a device."""
    import torch

    from actvar_cli.model.device import usable_device

    if name != "auto":
        usable_device(name)
        return name

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def open_model(
    name: str, *, device: str, progress: Progress, budget: float | None = None, dtype: str = "float32"
) -> ActVAR:
    """The model of that name on ``device``, fetched with a progress bar if it is not on this machine."""
    from actvar_cli.weights.load import load, locate

    locate(name, progress=progress)
    return load(name, device=choose_device(device), budget=budget, dtype=dtype)


def file_of(name: str, progress: Progress) -> Path:
    """The file of the model of that name, fetched if it is not on this machine."""
    from actvar_cli.weights.load import locate

    return locate(name, progress=progress).path


def digest_of(name: str, progress: Progress) -> str:
    """sha256 of the model's file, or of all its files, as published; where known by the name, no file is needed.

    A file that its publisher has replaced is pointed out to ``progress``.
    """
    from actvar_cli.weights.load import locate

    return _known_digest(name) or _digest(locate(name, progress=progress), progress)


def digest_here(name: str, progress: Progress) -> str | None:
    """The same without a network; ``None`` where the model is not on this machine."""
    from actvar_cli.weights.load import locate_here

    source = locate_here(name)
    return (_known_digest(name) or _digest(source, progress)) if source else None


def config_here(name: str) -> ModelConfig | None:
    """The configuration of the model of that name, which for a published one is known before it is fetched.

    ``None`` where the model, or its tokenizer, is not on this machine.
    """
    from actvar_cli.weights.load import config_of, locate_here

    source, entry = locate_here(name), KNOWN.get(name)
    with suppress(NotHereError):
        if source:
            return config_of(source)
    return published_config(entry.depth) if entry and entry.depth else None


def _known_digest(name: str) -> str | None:
    entry = KNOWN.get(name)
    return (entry.transformer.sha256 or None) if entry and isinstance(entry.transformer, HubFile) else None


def _digest(source: Located, progress: Progress) -> str:
    from actvar_cli.weights.artefact import is_artefact
    from actvar_cli.weights.converted import published_digest
    from actvar_cli.weights.shards import files_of

    digests = [published_digest(file) for file in files_of(source.path)]
    if what := what_is_old(digests[0]):
        progress.say(f"warning: {source.path} is {what}: `actvar fetch` brings the present one")
    # A plain state dict says nothing of its tokenizer: that is whichever lies beside it.
    if not is_artefact(source.path) and (tokenizer := source.tokenizer()):
        digests.append(published_digest(tokenizer))
    return "+".join(digests)


@dataclass(frozen=True)
class Source:
    """A model to work on: how the user calls it, its file and that file's digest; `open` loads it.

    ``loader`` returns the model in the type that it is given.
    """

    name: str
    path: Path
    sha256: str
    loader: Callable[[str], ActVAR]

    def open(self, dtype: str = "float32") -> ActVAR:
        """The model, its weights in ``dtype``."""
        return self.loader(dtype)

    @property
    def lineage(self) -> dict[str, Any]:
        """What made it, as far as its file tells."""
        from actvar_cli.weights.artefact import is_artefact, read_lineage

        return read_lineage(self.path) if is_artefact(self.path) else {}

    @property
    def base(self) -> ZooEntry | None:
        """The known model that it is, or was made from, by name or digest."""
        steps = [step for step in self.lineage.get("steps", []) if isinstance(step, Mapping)]
        return base_of(
            [self.name, *(step.get(key) for step in steps for key in ("source", "teacher"))],
            [self.sha256, *(step.get(key) for step in steps for key in ("sha256", "teacher_sha256"))],
        )

    def then(self, step: Mapping[str, Any]) -> dict[str, Any]:
        """The lineage of what ``step`` makes of this model."""
        return {"actvar": __version__, "steps": [*self.lineage.get("steps", []), dict(step)]}


def about(source: Source, metrics: Sequence[Metric], repo: str | None = None) -> About:
    """What the model card of ``source`` tells; ``repo`` is where it will be."""
    from actvar_cli.weights.card import About

    base = source.base
    return About(
        lineage=source.lineage,
        metrics=metrics,
        base_model=base.transformer.repo if base and isinstance(base.transformer, HubFile) else None,
        license=base.license if base else None,
        repo=repo,
    )


def named(name: str, *, device: str, progress: Progress, budget: float | None = None) -> Source:
    """The model of that name as a source; fetched, but not loaded before it is opened."""

    @cache
    def opened(dtype: str) -> ActVAR:
        return open_model(name, device=device, progress=progress, budget=budget, dtype=dtype)

    return Source(name, file_of(name, progress), digest_of(name, progress), opened)


@contextmanager
def at_budget(model: ActVAR, budget: float | None) -> Iterator[None]:
    """``model`` works at ``budget`` inside (``None``: as it is set); InputError where it cannot."""
    try:
        setting = model.setting if budget is None else model.setting_for(budget)
    except ValueError as error:
        raise InputError(str(error)) from error
    with model.at(setting):
        yield
