"""Random draws that are a function of (seed, epoch, item): the same on any number of processes and after a resume."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def draw(x: Tensor, seed: int, epoch: int) -> Tensor:
    """A hash in [0, 2**32), int64, for each element of x (the finaliser of MurmurHash3). Same shape as x."""
    h = _mix(x, seed, epoch).long()
    return (h & 0x7FFFFFFF) | ((h >> 31 & 1) << 31)


def share(x: Tensor, seed: int, epoch: int) -> Tensor:
    """The same, as a float64 uniform in [0, 1)."""
    return draw(x, seed, epoch).double() / 2.0**32


def uniform(key: Tensor, stream: Tensor | int) -> Tensor:
    """A number in [0, 1), float32, for each pair of a key and a stream, because an image needs several draws.

    key: int64, of which all 64 bits are used. stream: small integers that broadcast against it, one for each use.
    """
    mixed = _mix(key.long() + _mix(key >> 32, 0, 1), 0, 0)
    stream = stream if isinstance(stream, int) else stream.int()
    # the upper 24 bits: every multiple of 2**-24 is a float32, so that none is rounded up to 1
    return (_mix(mixed + stream, 0, 2) >> 8 & 0xFFFFFF).float() / 2.0**24


def normal(key: Tensor, stream: Tensor) -> Tensor:
    """A number from N(0, 1), float32, for each pair of a key and a stream, as in `uniform`; at most 5.5 in size."""
    centred = 2 * uniform(key, stream) - (1 - 2.0**-24)  # strictly between -1 and 1, where erfinv is finite
    return math.sqrt(2) * torch.erfinv(centred)


def keys(key: Tensor, stream: Tensor) -> Tensor:
    """A key, int64, for each pair of a key and a stream: of the frames of a clip, say, each with draws of its own."""
    return _mix(_mix(key.long() + _mix(key >> 32, 0, 1), 0, 3) + stream.int(), 0, 4).long()


def _mix(x: Tensor, seed: int, epoch: int) -> Tensor:
    """The 32 bits of `draw` as an int32: products wrap around. Every constant fits an int32, because torch.compile
    writes constants into a GPU kernel as 32-bit literals, where larger ones overflow."""
    key = (seed * 1_000_003 + epoch) * 0x85EBCA6B  # an int of any size
    h = x.to(torch.int32) * _signed(0x9E3779B1) + _signed(key)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ _upper(h, shift)) * _signed(factor)
    return h ^ _upper(h, 16)


def _upper(h: Tensor, shift: int) -> Tensor:
    """Logical shift: h >> shift with zeros shifted in."""
    return h >> shift & (1 << 32 - shift) - 1


def _signed(constant: int) -> int:
    """The number in [-2**31, 2**31) that equals `constant` modulo 2**32."""
    return (constant + 2**31) % 2**32 - 2**31
