"""Random draws that are a function of what they are for: equal on any number of processes, and after a resume."""

from __future__ import annotations

from torch import Tensor


def draw(x: Tensor, seed: int, epoch: int) -> Tensor:
    """A well-mixed integer in [0, 2**32) for each of x (the finaliser of MurmurHash3)."""
    key = (seed * 1_000_003 + epoch) * 0x85EBCA6B & 0xFFFFFFFF  # an int of any size
    h = (x.long() * 0x9E3779B1 + key) & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = ((h ^ (h >> shift)) * factor) & 0xFFFFFFFF
    return h ^ (h >> 16)


def share(x: Tensor, seed: int, epoch: int) -> Tensor:
    """The same, spread evenly over [0, 1)."""
    return draw(x, seed, epoch).double() / 2**32
