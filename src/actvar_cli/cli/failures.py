"""From an exception to what the user reads and the exit code: the one place that knows both."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import Any

import typer

from actvar_cli.errors import ActvarError, did_you_mean

DONE, FAILED, WRONG_INPUT, GATE_MISSED, INTERRUPTED = 0, 1, 2, 3, 130


def explain(error: BaseException) -> int:
    """Say on stderr what went wrong, one line for each problem, and return the exit code."""
    if os.environ.get("ACTVAR_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    message, code = in_words(error)
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return code


def in_words(error: BaseException) -> tuple[str, int]:
    """The message, and the exit code, of an exception."""
    if isinstance(error, ActvarError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "interrupted", INTERRUPTED
    # typer's usage errors are known by what they can do: their class is not public in every version.
    if hasattr(error, "format_message"):
        return _usage(error), WRONG_INPUT
    said = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said:
        return f"out of memory: try a smaller batch, or another --device ({_first_line(error)})", FAILED
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full", FAILED
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror, FAILED
    what = f"{type(error).__name__}: {_first_line(error)}".rstrip(": ")
    return f"unexpected {what} (ACTVAR_DEBUG=1 shows where)", FAILED


def _usage(error: Any) -> str:
    if hasattr(error, "option_name") and hasattr(error, "possibilities"):
        message = f"no such option: {error.option_name}{did_you_mean(error.option_name, error.possibilities or [])}"
    else:
        message = " ".join(error.format_message().split()).rstrip(".")
    message, context = message[:1].lower() + message[1:], getattr(error, "ctx", None)
    return f"{message}: see `{context.command_path} --help`" if context else message


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
