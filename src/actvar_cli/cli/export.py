"""actvar export."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actvar_cli.cli.options import Force, Json, Model, Quiet, default, option
from actvar_cli.cli.out import Out, table
from actvar_cli.cli.outputs import check_file, check_folder
from actvar_cli.errors import InputError
from actvar_cli.recipe.steps import ExportSettings as S
from actvar_cli.recipe.wording import checked
from actvar_cli.weights.zoo import KNOWN

if TYPE_CHECKING:
    from actvar_cli.model.sampling import ActVAR
    from actvar_cli.weights.push import Target


def export(
    model: Model,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the result goes. With --push it may be left out.")
    ] = None,
    format: Annotated[str, option(S, "format")] = default(S, "format"),
    dtype: Annotated[str, option(S, "dtype")] = default(S, "dtype"),
    shard_size: Annotated[str | None, option(S, "shard_size")] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/REPO", help="Upload the folder to the Hub, as one commit.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the new repository private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say files, sizes and what the Hub says of --push; write nothing.")
    ] = False,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a model as a folder to hand on: weights, tokenizer, configuration, model card.

    From a run's folder, the recipe and the record of the run go with it, unless a later run was stopped before it had
    made another model, and what the run measured is in the card. With --format var: the transformer alone, in the
    published layout and with every neuron back in its place, to be loaded by the original code; a tokenizer that is not
    the published one is written beside it.
    """
    given = {} if shard_size is None else {"shard_size": shard_size}
    settings = checked(S, {"format": format, "dtype": dtype, **given}, {})
    out = Out(as_json=as_json, quiet=quiet)
    if private and push is None:
        raise InputError("--private is for --push")
    if settings.format == "var" and (push is not None or dry_run):
        raise InputError(f"{'--dry-run' if push is None else '--push'} is for --format actvar")
    if output is None and (push is None or settings.format == "var"):
        raise InputError("say where the model goes: -o PATH, or --push OWNER/REPO")
    if settings.format == "var":
        assert output is not None
        _published(model, output, settings.dtype, force, out)
        return
    if output is not None:
        from actvar_cli.weights.export import own_files

        check_folder(output, replaceable=own_files(output), force=force)
    _Export(model, settings, force, out, push, private, dry_run).run(output)


def _published(model: str, output: Path, dtype: str, force: bool, out: Out) -> None:
    from actvar_cli.recipe import models
    from actvar_cli.weights.published import check_suffix, write_published

    check_suffix(output)
    check_file(output, force=force)
    opened = models.open_model(model, device="cpu", progress=out.progress)
    with out.progress.task(f"writing {output.name}", 1) as task:
        files = {path.name: path.stat().st_size for path in write_published(output, opened, dtype=dtype, force=force)}
        task.advance()
    if not opened.config.is_dense:
        out.hint("the published code has no experts: it computes all of them, whatever budget the model was made for")
    if opened.config.delta:
        out.hint("these are the original's weights: what was learned for lower budgets is left out")
    elif opened.config.guidance:
        out.hint("it also computes two rows for guidance; this model was trained on one, and may do worse with two")
    out.result({"format": "var", "dtype": dtype, "files": files}, f"{', '.join(files)}: {output.parent}", path=output)


class _Export:
    """One folder to write, to push, or to tell of."""

    def __init__(
        self, model: str, settings: S, force: bool, out: Out, push: str | None, private: bool, dry_run: bool
    ) -> None:
        from actvar_cli.recipe import models

        # Whoever may not push is told so before a model of many GB is read.
        self.target = None if push is None else _ask(push)
        self.dry_run = dry_run
        if self.target and not dry_run and (refusal := self.target.refusal((), private=private, force=force)):
            raise InputError(refusal)
        self.settings, self.force, self.out, self.private = settings, force, out, private
        source = models.named(model, device="cpu", progress=out.progress)
        # A known name is no folder, even where a run's folder is called so.
        files, metrics = ({}, []) if model in KNOWN else _of_run(Path(model), source.sha256)
        self.options: dict[str, Any] = {
            "dtype": settings.dtype,
            "shard_size": settings.shard_size,
            "about": models.about(source, metrics, push),
            "files": files,
        }
        self.model = source.open()

    def run(self, output: Path | None) -> None:
        from actvar_cli.weights.export import plan

        planned = plan(self.model, **self.options)
        refusal = self.target.refusal(planned, private=self.private, force=self.force) if self.target else None
        if self.dry_run:
            self._tell(planned, output, refusal)
        elif refusal:
            raise InputError(refusal)
        elif output is not None:
            self._write(output, shown=output)
        else:
            with tempfile.TemporaryDirectory(prefix="actvar-") as temporary:
                self._write(Path(temporary) / "export", shown=None)

    def _write(self, folder: Path, shown: Path | None) -> None:
        from actvar_cli.weights.export import export as export_model

        export_model(self.model, folder, force=self.force, progress=self.out.progress, **self.options)
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        data = {"format": "actvar", "dtype": self.settings.dtype, "files": files}
        lines = [f"{', '.join(files)}: {shown}"] if shown else []
        if self.target:
            from actvar_cli.weights.push import push

            message, progress = _message(self.model), self.out.progress
            commit = push(folder, self.target, message=message, private=self.private, progress=progress)
            data |= {"repo": self.target.repo, "commit": commit}
            lines.append(f"pushed: hf://{self.target.repo} ({commit})")
        self.out.result(data, *lines, path=shown, names=[f"hf://{self.target.repo}"] if self.target else ())

    def _tell(self, planned: dict[str, int], output: Path | None, refusal: str | None) -> None:
        from actvar_cli.profile.units import quantity

        data: dict[str, Any] = {"files": planned, "bytes": sum(planned.values())}
        places = [str(output)] if output else []
        lines = []
        if (target := self.target) is not None:
            places.append(f"{target.url} as {target.user!r}")
            data |= _as_data(target, planned, refusal)
            lines += _in_words(target, planned, self.private, refusal)
        shown = table("file", "size", rows=[(name, quantity(size, "B")) for name, size in sorted(planned.items())])
        total = f"{quantity(sum(planned.values()), 'B')} would go to {' and to '.join(places)}."
        self.out.result(data, shown, total, *lines, names=list(planned))


def _ask(repo: str) -> Target:
    from actvar_cli.weights.push import ask

    return ask(repo)


def _of_run(folder: Path, digest: str) -> tuple[dict[str, str], list[Any]]:
    """The texts that go along from a run's folder, and what the run measured of the model of that sha256."""
    from actvar_cli.recipe.cache import RECIPE, RECORD, read_record, read_texts
    from actvar_cli.recipe.summary import measured

    record, digests = read_record(folder), set(digest.split("+"))
    if record is None:
        # Whatever is called so is of another program.
        return {}, []
    made = {output for step in record.steps for output in step.outputs.values()}
    # Of a run that was stopped: the model is an earlier one's.
    of_another = not record.finished and digests.isdisjoint(made)
    return {} if of_another else read_texts(folder, (RECIPE, RECORD)), measured(record, digests)


def _message(model: ActVAR) -> str:
    from actvar_cli import __version__

    budget = model.config.default_budget
    how = "dense" if model.config.is_dense else f"at budget {budget:g}" if budget else "converted"
    return f"{model.config.name}, {how} (actvar {__version__})"


def _as_data(target: Target, planned: dict[str, int], refusal: str | None) -> dict[str, Any]:
    return {
        "repo": target.repo,
        "user": target.user,
        "exists": target.exists,
        "private": target.private,
        "may_write": target.may_write,
        "replaced": [name for name in target.replaced(planned) if name in planned],
        "removed": target.removed(planned),
        "refused": refusal,
    }


def _in_words(target: Target, planned: dict[str, int], private: bool, refusal: str | None) -> list[str]:
    """What would become of the repository."""
    kept = [name for name in target.files if name not in target.replaced(planned)]
    lines = ["the repository exists" if target.exists else f"a {'private' if private else 'public'} repository is made"]
    lines += [f"replaced: {', '.join(name)}" for name in [target.replaced(planned)] if name]
    lines += [f"kept: {', '.join(name)}" for name in [kept] if name]
    if target.may_write is None:
        lines.append("whether the token may write there is not known before it is tried")
    return [*lines, f"it would be refused: {refusal}"] if refusal else lines
