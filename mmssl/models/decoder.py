"""Convolutional decoders, from a vector or a map to an image, and a generator, from noise.

The generator of DCGAN (Radford et al. 2015, arXiv:1511.06434, figure 1). Differs: group norms, so that an image does
not depend on the others of its batch; enlarged pixels and a convolution instead of a transposed convolution, which
leaves a checkerboard (Odena et al. 2016, doi:10.23915/distill.00003).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mmssl.data import draws
from mmssl.models import memory

SMALLEST = 4  # px: side of the map that the vector becomes, as in the paper
GROUPS = 8
NOISE = 1 << 16  # first stream of the noise's draws, far after those of an image's view


class Decoder(nn.Module):
    """(batch, dim) -> (batch, channels, height, width), of any real values.

    size: (height, width). width: channels at half the image's side; twice as many at each halving before, at most 512.

    Raises BadInput if it does not fit into memory.
    """

    def __init__(self, dim: int, size: tuple[int, int], width: int = 32, channels: int = 3) -> None:
        super().__init__()
        self.size = size
        doublings = max(1, round(math.log2(min(size) / SMALLEST)))
        self.grid = tuple(math.ceil(side / 2**doublings) for side in size)
        widths = [min(512, width * 2**i) for i in reversed(range(doublings))]
        first = widths[0] * math.prod(self.grid)
        weights = dim * first + sum(9 * a * b for a, b in pairwise(widths))
        memory.refuse_too_large(weights, f"a decoder of {dim} numbers to {size[0]} x {size[1]} pixels")
        self.project = nn.Linear(dim, first)
        self.layers = doubling([*widths, channels])

    def forward(self, code: Tensor) -> Tensor:
        maps = self.project(code).view(len(code), -1, *self.grid).contiguous(memory_format=torch.channels_last)
        return self.layers(maps)[..., : self.size[0], : self.size[1]]


class MapDecoder(nn.Module):
    """(batch, dim, rows, columns) -> (batch, channels, height, width), of any real values.

    grid: (rows, columns). size, width, channels: see Decoder.
    """

    def __init__(
        self, dim: int, grid: tuple[int, int], size: tuple[int, int], width: int = 32, channels: int = 3
    ) -> None:
        super().__init__()
        self.size = size
        doublings = max(1, math.ceil(math.log2(max(side / cells for side, cells in zip(size, grid, strict=True)))))
        widths = [min(512, width * 2**i) for i in reversed(range(doublings))]
        self.project = nn.Conv2d(dim, widths[0], 3, padding=1).to(memory_format=torch.channels_last)
        self.layers = doubling([*widths, channels])

    def forward(self, maps: Tensor) -> Tensor:
        images = self.layers(self.project(maps))
        if images.shape[2:] == self.size:
            return images
        return F.interpolate(images, self.size, mode="bilinear", antialias=True)


def doubling(widths: Sequence[int]) -> nn.Sequential:
    """Layers from widths[0] to widths[-1] channels, each of which doubles height and width."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.GroupNorm(math.gcd(GROUPS, before), before), nn.ReLU()]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


class Generator(Decoder):
    """(batch, dim) -> (batch, 3, height, width) in [0, 1], fp32."""

    def noise(self, key: Tensor, phase: int = 0) -> Tensor:
        """(batch, dim) from N(0, 1), a function of the key: (batch,) int64. Each phase of a step has its own."""
        dim = self.project.in_features
        return draws.normal(key[:, None], NOISE + phase * dim + torch.arange(dim, device=key.device))

    def forward(self, noise: Tensor) -> Tensor:
        return super().forward(noise).float().sigmoid()

    def fixed(self, noise: Tensor) -> Tensor:
        """What `forward` makes of it; the gradient reaches the noise, not the weights."""
        return functional_call(self, {name: value.detach() for name, value in self.named_parameters()}, (noise,))

    def sampled(self, count: int) -> Tensor:
        """(count, 3, height, width): images from the same noise in every run."""
        return self(self.noise(torch.arange(count, device=self.project.weight.device)))

    def shown(self, rows: int, columns: int = 8) -> dict[str, Tensor]:
        """Columns of a figure: images from the same noise in every run, each (rows, 3, height, width)."""
        device = self.project.weight.device
        keys = torch.arange(rows * columns, device=device).view(columns, rows)
        return {"generated" if i == 0 else " " * i: self(self.noise(keys[i])) for i in range(columns)}
