from __future__ import annotations

import pytest

from actvar_cli.profile.units import duration, percent, quantity


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "FLOPs", "0 FLOPs"),
        (12.34, "", "12.3"),
        (999.6, "B", "1.00 kB"),
        (1.234e9, "FLOPs", "1.23 GFLOPs"),
        (9.996e8, "", "1.00 G"),
        (2.98e11, "", "298 G"),
    ],
)
def test_quantity(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0000123, "12.3 µs"), (0.01234, "12.3 ms"), (0.9997, "1.00 s"), (4.567, "4.57 s"), (200, "3 min 20 s")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_percent() -> None:
    assert percent(0.7841) == "78.4 %"
