from __future__ import annotations

import os
import subprocess
import sys

import pytest

FREED = """
import torch
from pathlib import Path
from actvar_cli.model.device import keep_memory, return_memory

def megabytes():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024

keep_memory(torch.device("cpu"))
before = megabytes()
tensors = [torch.zeros(2**20) for _ in range(50)]
del tensors
kept = megabytes() - before
return_memory()
print(kept, megabytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="that memory is kept is told by Linux")
@pytest.mark.parametrize(("asked", "keeps"), [({}, True), ({"MALLOC_ARENA_MAX": "4"}, False)])
def test_freed_memory_is_kept_until_it_is_returned_unless_the_environment_says_how(
    asked: dict[str, str], keeps: bool
) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))} | asked
    done = subprocess.run([sys.executable, "-c", FREED], env=environment, capture_output=True, text=True, check=True)
    kept, left = map(int, done.stdout.split())
    assert (kept > 150) == keeps
    assert left < 50
