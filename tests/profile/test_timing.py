from __future__ import annotations

import sys

import pytest
import torch

from actvar_cli.profile.timing import in_turn
from actvar_cli.progress import Progress


def test_ways_take_turns_after_a_warm_up() -> None:
    calls: list[tuple[str, int]] = []
    ways = {name: (lambda repeat, name=name: calls.append((name, repeat))) for name in "ab"}
    measured = in_turn(ways, repeats=3, device=torch.device("cpu"), progress=Progress())
    assert calls == [("a", 0), ("b", 0), ("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert [len(m.seconds) for m in measured.values()] == [3, 3]
    assert all(s >= 0 for m in measured.values() for s in m.seconds)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_the_most_memory_in_use_is_told_of_each() -> None:
    sizes = {"small": 2**24, "large": 2**27}
    ways = {name: (lambda _, size=size: torch.ones(size // 4).sum()) for name, size in sizes.items()}
    peaks = {
        name: measured.peak_bytes or 0
        for name, measured in in_turn(ways, repeats=1, device=torch.device("cpu"), progress=Progress()).items()
    }
    assert peaks["large"] - peaks["small"] == pytest.approx(2**27 - 2**24, rel=0.1)
