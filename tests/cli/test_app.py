"""The program around the commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import actvar_cli
from actvar_cli.cli.app import COMMANDS
from actvar_cli.errors import GateError
from actvar_cli.weights import fetch
from tests.cli.conftest import Actvar

HEAVY = ("torch", "numpy", "pydantic", "rich", "yaml", "huggingface_hub", "matplotlib")


def test_help_lists_every_command(actvar: Actvar) -> None:
    done = actvar("--help")
    assert done.code == 0
    assert done.err == ""
    for name, what in COMMANDS.items():
        assert f"\n  {name} " in done.out
        assert what in done.out
    assert actvar("-h").out == done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(actvar: Actvar, command: str) -> None:
    done = actvar(command, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: actvar {command} ")


def test_without_a_command_help_is_shown_and_the_exit_code_is_2(actvar: Actvar) -> None:
    done = actvar()
    assert (done.code, done.out) == (2, actvar("--help").out)


def test_version(actvar: Actvar) -> None:
    assert actvar("--version").out == f"actvar {actvar_cli.__version__}\n"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from actvar_cli.cli.app import main; assert main(['--help']) == 0; "
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [["ls"], ["validate", "var-fashion"], ["fetch", "var-d16", "--dry-run"]])
def test_what_computes_nothing_does_not_load_torch(arguments: list[str]) -> None:
    code = (
        f"import sys; from actvar_cli.cli.app import main; assert main({arguments}) == 0; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_module_and_script_are_the_same_program() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["actvar"] == "actvar_cli.cli.app:main"
    done = subprocess.run([sys.executable, "-m", "actvar_cli", "conver"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: unknown command 'conver' (did you mean 'convert'?): `actvar --help` lists them\n"


@pytest.mark.parametrize("name", ["FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "CLICOLOR_FORCE"])
def test_no_variable_puts_escape_codes_into_a_pipe(name: str) -> None:
    for arguments in (["--help"], ["ls"], ["ls", "--what"]):
        done = subprocess.run(
            [sys.executable, "-m", "actvar_cli", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, name: "1"},
        )
        assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample"], "missing argument 'MODEL': see `actvar sample --help`"),
        (["convert", "m", "--exprts", "8"], "no such option: --exprts (did you mean '--experts'?): see"),
        (
            ["convert", "m", "--experts", "many", "-o", "x"],
            "invalid value for '--experts': 'many' is neither a whole number nor several with commas between",
        ),
        (["sample", "m", "-o", "x.png", "--seed", "-1"], "invalid value for '--seed'"),
    ],
)
def test_usage_mistakes_are_one_line_and_exit_code_2(actvar: Actvar, arguments: list[str], message: str) -> None:
    done = actvar(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {message}")
    assert done.err.count("\n") == 1


def test_ctrl_c_sigterm_and_a_closed_terminal_are_interruptions(
    actvar: Actvar, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed() -> None:
        raise KeyboardInterrupt

    def by(number: int) -> Callable[[], None]:
        def terminated() -> None:
            os.kill(os.getpid(), number)
            time.sleep(5)

        return terminated

    # Under nohup, as the tests may be, it is ignored.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    before = signal.getsignal(signal.SIGTERM)
    for interrupted in (pressed, by(signal.SIGTERM), by(signal.SIGHUP)):
        monkeypatch.setattr(fetch, "list_models", interrupted)
        done = actvar("ls")
        assert (done.code, done.out, done.err) == (130, "", "error: interrupted\n")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) == (before, signal.SIG_DFL)


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(fetch, "list_models", fail)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (GateError("gate not met: cost"), 3, "gate not met: cost"),
        (
            ZeroDivisionError("division by zero\nsecond line"),
            1,
            "unexpected ZeroDivisionError: division by zero (ACTVAR_DEBUG=1 shows where)",
        ),
        (PermissionError(13, "Permission denied", "/x"), 1, "Permission denied: /x"),
        (OSError(28, "No space left on device"), 1, "the disk is full"),
        (
            RuntimeError("CUDA out of memory. Tried"),
            1,
            "out of memory: try a smaller batch, or another --device (CUDA out of memory. Tried)",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you"),
            1,
            "out of memory: try a smaller batch, or another --device "
            "([enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you)",
        ),
    ],
)
def test_failures_are_one_line(
    actvar: Actvar, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    fail_with(monkeypatch, error)
    done = actvar("ls")
    assert (done.code, done.out, done.err) == (code, "", f"error: {message}\n")


def test_the_traceback_is_there_for_who_asks(actvar: Actvar, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, ZeroDivisionError("oh"))
    monkeypatch.setenv("ACTVAR_DEBUG", "1")
    done = actvar("ls")
    assert done.code == 1
    assert "Traceback" in done.err and "fail_with" not in done.out
    assert done.err.endswith("error: unexpected ZeroDivisionError: oh (ACTVAR_DEBUG=1 shows where)\n")


def test_a_closed_pipe_is_no_reason_for_a_traceback() -> None:
    command = f"{sys.executable} -m actvar_cli schema | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("{", "")
