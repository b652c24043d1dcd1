"""The program `actvar`: finds the command, runs it, and turns whatever happens into a message and an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from actvar_cli import __version__
from actvar_cli.cli.failures import DONE, INTERRUPTED, WRONG_INPUT, explain
from actvar_cli.errors import InputError, did_you_mean

COMMANDS = {
    "ls": "List the known models, or the shipped recipes",
    "fetch": "Bring a model to this machine",
    "convert": "Split a model's FFNs into experts with routers",
    "distill": "Teach routers, experts and token gates, as a recipe says",
    "profile": "Count FLOPs and measure time, dense and compressed",
    "sample": "Sample pictures",
    "evaluate": "Compare a model with its original: quality, agreement, cost",
    "export": "Write a folder to hand on: weights, configuration, model card",
    "run": "Run a recipe, step by step, from where it stopped",
    "validate": "Check recipes without running them",
    "schema": "Print the JSON schema of recipes, for editors",
}
"""Every command and what it does; its code is the function of that name in the module of that name."""

INTRODUCTION = """Give a pretrained VAR image generator less work per image, at the same quality.

A model is named by a known name (`actvar ls`), a file, a folder, or hf://owner/repo[@revision][/file].

Results go to stdout, all else to stderr. Exit codes: 0 done, 1 failed, 2 wrong input, 3 gate not met, 130 interrupted.
"""

# Plain text, on a terminal as in a pipe: no environment variable can put escape codes into it.
PLAIN: dict[str, Any] = {"rich_markup_mode": None, "add_completion": False, "pretty_exceptions_enable": False}
HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Commands(TyperGroup):
    """Loads the module of the command that is asked for, and no other."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All commands, in the order in which a user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name; InputError with the nearest one otherwise."""
        if cmd_name not in COMMANDS:
            near = did_you_mean(cmd_name, list(COMMANDS))
            raise InputError(f"unknown command {cmd_name!r}{near}: `actvar --help` lists them")
        if cmd_name not in self.commands:
            function = getattr(import_module(f"actvar_cli.cli.{cmd_name}"), cmd_name)
            alone = typer.Typer(**PLAIN)
            alone.command(cmd_name, context_settings=HELP)(function)
            self.commands[cmd_name] = typer.main.get_command(alone)
        return self.commands[cmd_name]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list in the help, without loading a command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


app = typer.Typer(cls=Commands, help=INTRODUCTION, context_settings=HELP, **PLAIN)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"actvar {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, and a terminal that is closed, end the program as Ctrl-C does: half-written files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # Windows has no SIGHUP; under nohup it is ignored, and stays so.
    ends = [s for s in (signal.SIGTERM, getattr(signal, "SIGHUP", None)) if s and signal.getsignal(s) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in ends}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``actvar`` with ``arguments`` (default: those of the process) and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A terminal that cannot show an é must not stop the work.
            stream.reconfigure(errors="replace")
    # torch reads it when it first needs memory: keys and values then come in pages of 2 MB where Linux has them, which
    # takes a tenth of the time of sampling less.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _terminable():
            code = app(given or ["--help"], "actvar", standalone_mode=False)
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException as error:
        return explain(error)
    if not given:
        return WRONG_INPUT
    # typer swallows Ctrl-C and gives its exit code back, as it does with typer.Exit.
    return explain(KeyboardInterrupt()) if code == INTERRUPTED else int(code or DONE)
