"""Patches of images: cut them out, and remove the differences of colour that tell where in an image a patch was."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

GREEN_MAGENTA = (-1.0, 2.0, -1.0)  # red, green, blue: Doersch et al. 2015, arXiv:1505.05192, section 3.1


def cut(pixels: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """(batch, patches, 3, side, side). pixels: (batch, 3, height, width). top, left: (batch, patches) int64, the first
    row and column of each patch."""
    along = torch.arange(side, device=pixels.device)
    image = torch.arange(len(pixels), device=pixels.device)[:, None, None, None]
    rows, columns = (top[..., None] + along)[..., None], (left[..., None] + along)[..., None, :]
    return pixels[image, :, rows, columns].movedim(-1, 2)


def one_channel(patches: Tensor, drawn: Tensor) -> Tensor:
    """The same colour channel three times. patches: (..., 3, side, side). drawn: (...) in [0, 1), which channel."""
    chosen = (3 * drawn).long()[..., None, None, None]
    return patches.gather(-3, chosen.expand(*patches.shape[:-3], 3, *patches.shape[-2:]))


def without_green_magenta(pixels: Tensor, std: Tensor) -> Tensor:
    """Without differences from green to magenta, which lenses shift against each other: all pixels have those of the
    mean. pixels: (..., 3, height, width), normalised by `std`: (3,)."""
    axis = _green_magenta(pixels.device)
    kept = torch.eye(3, device=pixels.device) - axis[:, None] * axis / axis.square().sum()
    kept = kept * std / std[:, None]  # of normalised values: undo the deviation, project, divide by it again
    return torch.einsum("dc,...chw->...dhw", kept, pixels)


@cache
def _green_magenta(device: torch.device) -> Tensor:
    """(3,), made once, because a copy to a GPU waits for it."""
    return torch.tensor(GREEN_MAGENTA, device=device)
