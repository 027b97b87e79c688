"""The device that training and evaluation run on, and whether it computes bf16 fast."""

from __future__ import annotations

import torch


def best_device(use_cpu: bool = False) -> torch.device:
    """The accelerator; the CPU where there is none, or where it is to be left alone."""
    on_cpu = use_cpu or not torch.accelerator.is_available()
    return torch.device("cpu") if on_cpu else torch.accelerator.current_accelerator()


def fast_bf16(use_cpu: bool = False) -> bool:
    """True where bf16 matrix products are faster than fp32: recent CUDA devices, CPUs with AMX, AMD's from Zen 4 on.

    bf16 to fp32, by `python -m timeit -s "import torch; a = torch.randn(2048, 2048).bfloat16()" "a @ a"` and without
    the bfloat16: 2.3 times as fast on Zen 4. Others, measured earlier: about 6 times with AMX, half to a third as fast
    on an Intel with AVX512-BF16 and no AMX, a 150th with AVX2.
    """
    if torch.cuda.is_available() and not use_cpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = torch.cpu.get_capabilities()
    return cpu.get("amx_bf16", False) or (cpu.get("avx512_bf16", False) and cpu.get("cpu_name", "").startswith("AMD"))


def precision(args) -> str:
    """The device's answer to --bf16: "bf16" or "no"."""
    return "bf16" if args.bf16 == "yes" or (args.bf16 == "auto" and fast_bf16(args.use_cpu)) else "no"
