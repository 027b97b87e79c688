"""The device that training and evaluation run on, and whether it computes bf16 fast."""

from __future__ import annotations

import ctypes
import math
import os
import platform
from pathlib import Path

import torch

# of the cgroup that Docker, Kubernetes and Slurm start a process in: version 2, version 1
CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def best_device(use_cpu: bool = False) -> torch.device:
    """The accelerator, or the CPU if there is none or if use_cpu is set."""
    on_cpu = use_cpu or not torch.accelerator.is_available()
    return torch.device("cpu") if on_cpu else torch.accelerator.current_accelerator()


def fast_bf16(use_cpu: bool = False) -> bool:
    """True if bf16 matrix products are faster than fp32: recent CUDA devices, CPUs with AMX, AMD CPUs from Zen 4 on.

    Measured with `python -m timeit -s "import torch; a = torch.randn(2048, 2048).bfloat16()" "a @ a"` and without
    .bfloat16(): bf16 is 2.3 times as fast on Zen 4. Measured earlier: about 6 times as fast with AMX, a half to a third
    as fast on an Intel CPU with AVX512-BF16 but no AMX, a 150th as fast with AVX2.
    """
    if torch.cuda.is_available() and not use_cpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = torch.cpu.get_capabilities()
    return cpu.get("amx_bf16", False) or (cpu.get("avx512_bf16", False) and cpu.get("cpu_name", "").startswith("AMD"))


def precision(args) -> str:
    """The precision that --bf16 selects on this device: "bf16" or "no"."""
    return "bf16" if args.bf16 == "yes" or (args.bf16 == "auto" and fast_bf16(args.use_cpu)) else "no"


def cores() -> int:
    """The CPU cores that this process may use."""
    import psutil  # comes with accelerate

    try:
        return len(psutil.Process().cpu_affinity())
    except (AttributeError, psutil.Error):  # macOS has no affinity
        return os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Let the process keep the memory that it frees. glibc gives large blocks back to the system, which clears them
    when the next step asks for them: 5 to 9 % of the time of a training on a CPU. Elsewhere it changes nothing."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def free_memory() -> int | None:
    """Bytes: of the machine, or of its GPU if that has more. At most what the container allows. None if unknown."""
    import psutil  # comes with accelerate

    try:
        free = min(psutil.virtual_memory().available, *map(_number, CONTAINER_LIMITS))
        return max(free, torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else free
    except (OSError, RuntimeError, psutil.Error):  # /proc cannot be read; the driver fails
        return None


def _number(file: Path) -> float:
    """The number in a file; infinity if there is none."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # "max"
        return math.inf
