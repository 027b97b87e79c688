"""Colours as CIE Lab: L, the lightness, and ab, the colour; and the 313 bins of ab in which colours are classified.

sRGB is IEC 61966-2-1, with the white of D65 (2 degrees); Lab is CIE 15. The bins are those of Zhang et al. 2016,
arXiv:1603.08511, section 2.1.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

XYZ_OF_RGB = (  # of linear sRGB; the sum of each row is the white of D65
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
DELTA = 6 / 29  # below the cube of this, the cube root is replaced by a line
BIN, NEIGHBOURS, SIGMA = 10, 5, 5.0  # side of a bin; bins of a soft encoding; its deviation: section 2.1 and 2.2
BINS, LARGEST_L = 313, 100.0
CANDIDATES = 12  # with these the five nearest are exact: see tests/data/test_lab.py


def from_srgb(pixels: Tensor) -> Tensor:
    """(..., 3, height, width) fp32 in [0, 1] -> Lab of the same shape: L in [0, 100], a and b in about [-108, 99]."""
    with torch.autocast(pixels.device.type, enabled=False):
        pixels = pixels.float()
        linear = torch.where(pixels <= 0.04045, pixels / 12.92, ((pixels.clamp(min=0) + 0.055) / 1.055) ** 2.4)
        matrix = _xyz_of_rgb(pixels.device)
        x, y, z = _compress(_mix(linear, matrix / matrix.sum(1, keepdim=True))).unbind(-3)
        return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -3)


def to_srgb(lab: Tensor) -> Tensor:
    """The inverse of `from_srgb`. Colours that sRGB does not have are clipped to [0, 1]."""
    with torch.autocast(lab.device.type, enabled=False):
        lightness, a, b = lab.float().unbind(-3)
        y = (lightness + 16) / 116
        matrix = _xyz_of_rgb(lab.device)
        relative = _expand(torch.stack([y + a / 500, y, y - b / 200], -3))
        back = torch.linalg.inv((matrix / matrix.sum(1, keepdim=True)).double()).float()
        linear = _mix(relative, back).clamp(0, 1)
        return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@cache
def _xyz_of_rgb(device: torch.device) -> Tensor:
    """Made once, because a copy to a GPU waits for it."""
    return torch.tensor(XYZ_OF_RGB, dtype=torch.float32, device=device)


def _mix(channels: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("ij,...jhw->...ihw", matrix, channels)


def _compress(t: Tensor) -> Tensor:
    return torch.where(t > DELTA**3, t.clamp(min=DELTA**3) ** (1 / 3), t / (3 * DELTA**2) + 4 / 29)


def _expand(t: Tensor) -> Tensor:
    return torch.where(t > DELTA, t**3, 3 * DELTA**2 * (t - 4 / 29))


@cache
def bins() -> Tensor:
    """(313, 2) fp32: the colours ab at which bins are centred, multiples of 10 in the order of a, then of b.

    They are the corners of all squares of the lattice of tens that meet the convex hull of the colours of sRGB; the
    bins that the authors of the paper publish follow this rule.
    """
    from scipy.spatial import ConvexHull

    levels = torch.linspace(0, 1, 17)
    colours = from_srgb(torch.cartesian_prod(levels, levels, levels).T[:, :, None])[1:, :, 0].T.double()
    hull = torch.from_numpy(ConvexHull(colours.numpy()).equations)  # n x + c <= 0 inside
    ten = torch.arange(-120, 121, BIN).double()
    corners = torch.cartesian_prod(ten, ten)
    # a corner's four squares together are a larger one: an edge of either shape must separate it from the hull
    nearest_to_hull = corners @ hull[:, :2].T + hull[:, 2] - BIN * hull[:, :2].abs().sum(1)
    beside = (corners + BIN > colours.amin(0)) & (corners - BIN < colours.amax(0))
    return corners[(nearest_to_hull < 0).all(1) & beside.all(1)].float()


@cache
def candidates() -> Tensor:
    """(256 * 256, 12) int64: the bins nearest to each pair of whole numbers a and b in [-128, 127]."""
    whole = torch.arange(-128, 128).float()
    pairs = torch.cartesian_prod(whole, whole)
    return torch.cat([torch.cdist(some, bins()).topk(CANDIDATES, largest=False)[1] for some in pairs.split(8192)])


def soft_encoding(ab: Tensor, bins: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """(index (n, 5) int64, weight (n, 5)): the nearest bins, the nearest first, and Gaussian weights that sum to 1
    (section 2.1). ab: (n, 2) fp32. bins, candidates: those of this module, on the device of ab.

    The five are searched among the candidates of the rounded colour, which takes a tenth of the time.
    """
    a, b = (ab.round().clamp(-128, 127).long() + 128).unbind(1)
    near = candidates[256 * a + b]
    distance, five = (ab[:, None] - bins[near]).square().sum(2).topk(NEIGHBOURS, largest=False)
    return near.gather(1, five), (-distance / (2 * SIGMA**2)).softmax(1)


def annealed_mean(logits: Tensor, bins: Tensor, temperature: float) -> Tensor:
    """(..., bins) -> (..., 2): the mean colour of the predicted distribution after a softmax at `temperature`
    (equation 5): between the mean, at 1, and the mode, at 0."""
    return (logits.float() / temperature).softmax(-1) @ bins
