"""Numbers as a person reads them."""

from __future__ import annotations

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def quantity(value: float, unit: str = "") -> str:
    """Three digits and a prefix: ``quantity(1.234e9, "FLOPs")`` is ``1.23 GFLOPs``, without a unit ``1.23 G``."""
    if value == 0:
        return f"0 {unit}".rstrip()
    for size, prefix in _PREFIXES:
        if abs(value) >= 0.9995 * size:
            return f"{_three(value / size)} {prefix}{unit}"
    return f"{_three(value)} {unit}".rstrip()


def duration(seconds: float) -> str:
    """Three digits in the unit that fits: ``12.3 ms``, ``4.56 s``, ``3 min 20 s``."""
    if seconds >= 120:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    if seconds >= 0.9995:
        return f"{_three(seconds)} s"
    return f"{_three(1e3 * seconds)} ms" if seconds >= 0.9995e-3 else f"{_three(1e6 * seconds)} µs"


def percent(share: float) -> str:
    """``0.7841`` is ``78.4 %``."""
    return f"{100 * share:.1f} %"


def _three(value: float) -> str:
    size = abs(value)
    return f"{value:.{0 if size >= 99.95 else 1 if size >= 9.995 else 2}f}"
