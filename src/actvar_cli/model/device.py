"""What differs between devices when work on them is measured."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import cache
from pathlib import Path

import torch

from actvar_cli.errors import InputError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of ``malloc.h``: how much free memory is kept, and from which size on tensors get memory of their own."""

MOST_KEPT = 2**31 - 1
"""The largest number that either takes."""

MOST_OF_AN_ARENA = 2**25
"""The largest that older versions of glibc take for the second: half of what one of their arenas holds."""

CPU_INFO = Path("/proc/cpuinfo")
"""Where Linux tells what the CPU is and has."""


def usable_device(name: str) -> torch.device:
    """The device of that name; InputError where there is none such here."""
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} is not usable here: {str(error).splitlines()[0]}") from error


def synchronise(device: torch.device) -> None:
    """Wait until ``device`` has finished what it was given, so that a clock read next is right."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_name(device: torch.device) -> str:
    """The device in words, such as ``cpu, 2 threads (x86_64)`` or ``NVIDIA H100``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' * (threads > 1)} ({platform.machine()})"


def fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products are faster than float32 ones on ``device``.

    A CPU of Intel's has to have AMX: with ``avx512_bf16`` alone they take nearly twice as long.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() not in ("AVX512", "AVX512_BF16", "AMX"):
        return False
    about = CPU_INFO.read_text() if CPU_INFO.exists() else ""
    return "amx_bf16" in about or ("avx512_bf16" in about and "AuthenticAMD" in about)


def watch_peak(device: torch.device) -> bool:
    """Begin to watch the most memory in use, for `peak_memory`; whether that can be told.

    On a GPU it is that of tensors; else that of the whole process, which Linux tells.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    if device.type != "cpu":
        return False
    return_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory(device: torch.device) -> int:
    """The most bytes in use at once since `watch_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    highest = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(highest.split()[1]) * 1024


@cache
def keep_memory(device: torch.device) -> None:
    """From now on keep what is freed for what is asked for next, where the C library would give it back (glibc).

    Every block's activations have the sizes of the last one's, and pages that come anew from the system are zeroed
    first; so have keys and values those of the sampling before. Up to 2 GB are kept, until `return_memory`. Nothing is
    changed where the environment says how to allocate.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    told = any(name.startswith(("MALLOC_", "GLIBC_")) for name in os.environ)
    if device.type != "cpu" or not mallopt or told:
        return
    # The second alone would fix the first at 128 KB, and every tensor would be asked for anew.
    if mallopt(M_MMAP_THRESHOLD, MOST_KEPT) or mallopt(M_MMAP_THRESHOLD, MOST_OF_AN_ARENA):
        mallopt(M_TRIM_THRESHOLD, MOST_KEPT)


def return_memory() -> None:
    """Give what was freed back to the system, where the allocator of the C library keeps it (glibc).

    Activations of a few MB each leave it with hundreds of MB that no longer serve anything.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim:
            trim(0)
