"""Comparison of several implementations: they take turns, a few steps each; the result is the median over turns of the
ratio within a turn."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainingArguments

from mmssl.device import best_device, fast_bf16

OURS = "mmssl loop"  # what the others are compared with
RUN = {"save_steps": 0, "overwrite_output_dir": True}  # flags of our loop: each turn is a run in the same place
Sides = dict[str, Callable[[int], float]]  # called with a number of steps; returns the seconds that they took


def take_turns(sides: Sides, turns: int, steps: int, warm_up: int = 2) -> dict[str, list[float]]:
    """The seconds of each side's turns of `steps` steps."""
    for side in sides.values():
        side(warm_up)
    seconds = {name: [] for name in sides}
    for turn in range(turns):
        # back and forth, so that a machine that slows down favours nobody
        for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            seconds[name].append(sides[name](steps))
    return seconds


def report(seconds: dict[str, list[float]], amount: float, unit: str, ours: str = OURS) -> None:
    """Print each side's rate, and how it compares with `ours`. amount: of `unit`, in a turn."""
    for name, values in seconds.items():
        rate = statistics.median(amount / value for value in values)
        ratios = [other / own for other, own in zip(values, seconds[ours], strict=True)]
        print(
            f"{name:<32}{rate:9,.0f} {unit}/s    {ours} is {statistics.median(ratios):.3f} times as fast "
            f"({min(ratios):.3f} to {max(ratios):.3f})"
        )


def ask(worker: subprocess.Popen, steps: int) -> float:
    """The seconds that a process of a peer's own took for so many steps, by its own clock."""
    worker.stdin.write(f"{steps}\n")
    worker.stdin.flush()
    answer = worker.stdout.readline()
    if not answer:
        raise RuntimeError("the peer's process ended; its last words are above")
    return float(answer)


def trainer_settings(use_cpu: bool, **own) -> TrainingArguments:
    """Of a side that is transformers' Trainer: its defaults, without what only costs time."""
    on_cpu = best_device(use_cpu).type == "cpu"  # it refuses bf16 there unless it is told
    return TrainingArguments(use_cpu=on_cpu, dataloader_drop_last=True, save_strategy="no", disable_tqdm=True, **own)


def precision(use_cpu: bool) -> str:
    """What our loop computes in, by default."""
    return "bf16" if fast_bf16(use_cpu) else "fp32"


def share_of_peak(side: Callable[[int], float], device: torch.device, uncounted: float = 0.0) -> str:
    """A step's matrix products and convolutions against this machine's fastest matrix product, in the precision of our
    loop. uncounted: floating point operations of a step that FlopCounterMode does not see."""
    with FlopCounterMode(display=False) as counter:
        side(1)
    operations = counter.get_total_flops() + uncounted
    dtype = torch.bfloat16 if precision(device.type == "cpu") == "bf16" else torch.float32
    a, fastest = torch.randn(2048, 2048, device=device, dtype=dtype), float("inf")
    for _ in range(10):
        started = time.perf_counter()
        (a @ a).flatten()[0].item()  # waits for the device
        fastest = min(fastest, time.perf_counter() - started)
    reached, peak = operations / (side(3) / 3) / 1e9, 2 * 2048**3 / fastest / 1e9
    return f"{reached:,.0f} of {peak:,.0f} GFLOP/s, {reached / peak:.0%} of the measured matrix peak"
