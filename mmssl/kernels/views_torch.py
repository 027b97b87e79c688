"""Views of images as tensor operations, on any device: the same mathematics as the compiled pass of kernels.views."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def tensor_form(
    pixel_values: Tensor,
    parameters: Tensor,
    size: tuple[int, int],
    affine: bool,
    radius: int,
    mean: Tensor,
    std: Tensor,
) -> Tensor:
    """(batch, 3, *size) float32: one view of each image, as tensor operations.

    pixel_values: (batch, 3, height, width) uint8. parameters: (batch, 14), see `Views.parameters_of`. affine: whether
    the matrix rotates or moves the image; otherwise it crops. radius: of the blur kernel, in pixels. mean, std: (3,).
    """
    with torch.autocast(pixel_values.device.type, enabled=False):  # in bf16 a pixel keeps only 8 bits
        p = [column.view(-1, 1, 1, 1) for column in parameters.unbind(1)]
        pixels = _geometry(pixel_values, parameters, size, affine)
        pixels = _colours(pixels, *p[6:12])
        if radius > 0:
            pixels = _blur(pixels, parameters[:, 12], radius)
        pixels = torch.minimum(pixels, 2 - p[13] - pixels)  # x or, if solarised, min(x, 1 - x)
        return (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def _geometry(pixel_values: Tensor, parameters: Tensor, size: tuple[int, int], affine: bool) -> Tensor:
    if affine:  # the whole image is resized to the view's size, then rotated
        unmoved = torch.eye(2, 3, dtype=parameters.dtype, device=parameters.device).view(1, 6)
        pixels = _geometry(pixel_values, unmoved, size, affine=False)
        grid = F.affine_grid(parameters[:, :6].reshape(-1, 2, 3), list(pixels.shape), align_corners=False)
        return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    height, width = pixel_values.shape[2:]
    down = _weights(parameters[:, 4], parameters[:, 5], height, size[0]).unsqueeze(1)
    across = _weights(parameters[:, 0], parameters[:, 2], width, size[1]).unsqueeze(1)
    return down @ pixel_values.float() @ across.mT / 255


def _weights(scale: Tensor, shift: Tensor, source: int, size: int) -> Tensor:
    """(batch, size, source) float32: the triangle filter of each output pixel, as wide as two source or two output
    pixels, whichever is more. The output pixel at u in [-1, 1] samples the source at scale * u + shift; [-1, 1] is the
    whole source. scale, shift: (batch,)."""
    u = (2 * torch.arange(size, device=scale.device, dtype=torch.float64) + 1) / size - 1
    centre = ((scale[:, None].double() * u + shift[:, None].double() + 1) * source - 1) / 2
    support = (scale.abs() * source / size).clamp(min=1)[:, None, None]
    whole = centre.floor()
    # float64 for the position of a pixel, float32 for the distance from it
    away = torch.arange(source, device=scale.device) - whole.float()[..., None] - (centre - whole).float()[..., None]
    weights = (1 - away.abs() / support).clamp(min=0)
    return weights / weights.sum(dim=2, keepdim=True)


def _colours(
    pixels: Tensor,
    brightness: Tensor,
    lightness: Tensor,
    contrast: Tensor,
    saturation: Tensor,
    turn: Tensor,
    grey: Tensor,
) -> Tensor:
    pixels = (pixels * brightness + lightness).clamp(0, 1)
    pixels = torch.lerp(_luma(pixels).mean((2, 3), keepdim=True), pixels, contrast).clamp(0, 1)
    pixels = torch.lerp(_luma(pixels), pixels, saturation).clamp(0, 1)
    pixels = torch.where(turn != 0, _turn_hue(pixels, turn), pixels)
    return torch.where(grey > 0, _luma(pixels), pixels)


def _luma(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _turn_hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """Convert to HSV, rotate the hue by the fraction `turn` of a circle, convert back. The hue stays multiplied by the
    chroma, which avoids a division by it. pixels: (batch, 3, height, width). turn: (batch, 1, 1, 1)."""
    red, green, blue = pixels.split(1, dim=1)
    most, least = pixels.amax(1, keepdim=True), pixels.amin(1, keepdim=True)
    chroma = most - least
    hue = torch.where(most == green, 2 * chroma + blue - red, 4 * chroma + red - green)
    hue = torch.where(most == red, green - blue, hue)  # six times the hue, times the chroma
    fifths = torch.arange(5, 0, -2, dtype=pixels.dtype, device=pixels.device)  # 5, 3, 1
    start = (6 * turn + fifths.view(1, 3, 1, 1)) % 6
    k = hue + start * chroma
    k = torch.where(k >= 6 * chroma, k - 6 * chroma, k)
    # each channel is the maximum minus a trapezoid over the colour circle
    return most - torch.minimum(torch.minimum(k, 4 * chroma - k), chroma).clamp(min=0)


def _blur(pixels: Tensor, sigma: Tensor, radius: int) -> Tensor:
    n, channels, height, width = pixels.shape
    away = torch.arange(-radius, radius + 1, device=pixels.device)
    taps = torch.exp(-0.5 * (away / sigma.clamp(min=1e-3)[:, None]) ** 2)  # sigma 0: one tap, no blur
    taps = (taps / taps.sum(1, keepdim=True)).repeat_interleave(channels, dim=0)[:, None]
    planes = F.pad(pixels.reshape(1, -1, height, width), [radius] * 4, mode="replicate")
    planes = F.conv2d(planes, taps[:, :, None], groups=n * channels)
    return F.conv2d(planes, taps[..., None], groups=n * channels).view(n, channels, height, width)
