from __future__ import annotations

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
    assert measured["a"].peak_bytes is None
