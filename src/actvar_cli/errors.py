"""What can go wrong, in words for the person at the shell; the command line maps each class to an exit code."""

from __future__ import annotations


class ActvarError(Exception):
    """Something failed that the user could not have known (exit code 1)."""

    exit_code = 1


class InputError(ActvarError):
    """The user's input is wrong; the message says what, where, and what would be right (exit code 2)."""

    exit_code = 2


class NotHereError(InputError):
    """What is wanted is not on this machine, and may not be fetched now."""


class GateError(ActvarError):
    """A quality or cost gate was not met (exit code 3)."""

    exit_code = 3


def did_you_mean(word: str, known: list[str]) -> str:
    """`` (did you mean 'x'?)`` for a near miss, else an empty string."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""
