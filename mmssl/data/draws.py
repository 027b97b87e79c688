"""Random draws that are a function of what they are for: equal on any number of processes, and after a resume."""

from __future__ import annotations

from torch import Tensor


def draw(x: Tensor, seed: int, epoch: int) -> Tensor:
    """A well-mixed integer in [0, 2**32) for each of x (the finaliser of MurmurHash3)."""
    key = _signed((seed * 1_000_003 + epoch) * 0x85EBCA6B)  # an int of any size
    h = _low(x.long() * _signed(0x9E3779B1) + key)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = _low((h ^ (h >> shift)) * _signed(factor))
    return h ^ (h >> 16)


def share(x: Tensor, seed: int, epoch: int) -> Tensor:
    """The same, spread evenly over [0, 1)."""
    return draw(x, seed, epoch).double() / 2.0**32


def uniform(key: Tensor, stream: Tensor) -> Tensor:
    """A number in [0, 1), float32, for each pair of a key and a stream: one image, say, needs several draws.

    key: int64, all 64 bits count. stream: small integers that broadcast against it, one for each use of the key.
    """
    mixed = draw(key.long() + draw(key >> 32, 0, 1), 0, 0)
    # the upper 24 bits: every multiple of 2**-24 is a float32, so that none is rounded up to 1
    return (draw(mixed + stream, 0, 2) >> 8).float() / 2.0**24


# torch.compile writes integer constants into a GPU kernel as 32-bit literals, where a constant beyond int32 overflows:
# none is used here. Modulo 2**32 a factor may as well be negative, and a mask can be put together from two.


def _signed(constant: int) -> int:
    """The number in [-2**31, 2**31) that equals `constant` modulo 2**32."""
    return (constant + 2**31) % 2**32 - 2**31


def _low(h: Tensor) -> Tensor:
    """h modulo 2**32, in [0, 2**32)."""
    return (h & 0x7FFFFFFF) | ((h >> 31 & 1) << 31)
