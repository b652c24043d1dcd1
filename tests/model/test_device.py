from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from actvar_cli.model import device, products

FREED = """
import torch
from pathlib import Path
from actvar_cli.model.device import keep_memory, return_memory

def megabytes():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024

keep_memory(torch.device("cpu"))
before = megabytes()
tensors = [*(torch.zeros(2**20) for _ in range(50)), torch.zeros(2**27)]
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
    assert kept > 650 if keeps else kept < 50
    assert left < 50


@pytest.mark.parametrize(
    ("capability", "about", "fast"),
    [
        ("AVX512", "GenuineIntel avx512_bf16 amx_bf16 amx_tile", True),
        ("AVX512", "GenuineIntel avx512_bf16", False),
        ("AVX512", "AuthenticAMD avx512_bf16", True),
        ("AVX512", "AuthenticAMD avx512f", False),
        ("AVX2", "GenuineIntel avx512_bf16 amx_bf16", False),
        ("AVX512", None, False),
    ],
)
def test_bfloat16_is_fast_only_on_cpus_that_compute_it_faster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capability: str, about: str | None, fast: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(device, "CPU_INFO", tmp_path / "cpuinfo")
    if about:
        (tmp_path / "cpuinfo").write_text(about)
    assert device.fast_bf16(torch.device("cpu")) == fast


def test_a_cpu_multiplies_in_few_bits_only_where_that_is_faster() -> None:
    assert (torch.bfloat16 in products.FAST) == device.fast_bf16(torch.device("cpu"))
    assert torch.float16 not in products.FAST
