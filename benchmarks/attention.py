"""Attention forward and backward on a CPU: plain matrix products compared with torch's two kernels, at several lengths.

python benchmarks/attention.py      # the limits in mmssl/kernels/attention.py were chosen from its results

Each case has the same number of tokens. The sides take turns; the result is the median ratio over turns.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mmssl.arguments import Flags, command, flag
from mmssl.kernels import attention


@dataclass
class BenchmarkArgs(Flags):
    lengths: list[int] = flag([17, 32, 65, 128, 256, 512, 1024], "of the sequences", at_least=1)
    tokens: int = flag(4096, "in a batch", at_least=1)
    heads: int = flag(4, "of attention", at_least=1)
    width: int = flag(64, "of a head", at_least=1)
    turns: int = flag(9, "of every side", at_least=1)
    threads: int = flag(torch.get_num_threads(), "of torch", at_least=1)


def main(args: BenchmarkArgs) -> None:
    torch.set_num_threads(args.threads)
    attention.LONGEST_FP32 = attention.LONGEST_BF16 = max(args.lengths)  # ours at every length
    print(f"{args.tokens} tokens, {args.heads} heads of {args.width}, {args.threads} threads; ours is times as fast as")
    print(f"{'':>8}{'fp32: fused':>14}{'unfused':>10}{'bf16: fused':>14}{'unfused':>10}")
    for length in args.lengths:
        ratios = [ratio for bf16 in (False, True) for ratio in compare(args, length, bf16)]
        print(f"{length:>8}{ratios[0]:>14.2f}{ratios[1]:>10.2f}{ratios[2]:>14.2f}{ratios[3]:>10.2f}", flush=True)


def compare(args: BenchmarkArgs, length: int, bf16: bool) -> list[float]:
    """Time of torch's fused and of its unfused kernel, each against ours."""
    shape = (args.tokens // length, length, args.heads, args.width)
    dtype = torch.bfloat16 if bf16 else torch.float32
    inputs = [torch.randn(shape, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    gradient = torch.randn(shape, dtype=dtype)
    sides = {
        attention.attend: [],
        sdpa_kernel(SDPBackend.FLASH_ATTENTION)(sdpa_attention_forward): [],
        sdpa_kernel(SDPBackend.MATH)(sdpa_attention_forward): [],
    }
    for _ in range(args.turns + 1):
        for side, seconds in sides.items():
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                output, _ = side(nn.Module(), *inputs, None, is_causal=False)
            torch.autograd.grad(output, inputs, gradient)
            seconds.append(time.perf_counter() - began)
    ours, *theirs = (seconds[1:] for seconds in sides.values())  # without the first, which warms up
    return [statistics.median(t / o for t, o in zip(their, ours, strict=True)) for their in theirs]


if __name__ == "__main__":
    command(main, BenchmarkArgs, __doc__)
