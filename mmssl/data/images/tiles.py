"""Tiles of an image: one from each cell of a grid, in a form that hides how tiles lie beside each other.

Noroozi & Favaro 2016, arXiv:1603.09246, section 4.2, "preventing shortcuts". A network could tell the position of a
tile without looking at objects: from lines that go on in the next tile, from brightness that changes over the image,
and from the displacement of colours at the border of a lens (chromatic aberration). So a tile lies anywhere in its
cell, has a mean of zero and a deviation of one, and its colour channels are displaced at random, or it is grey.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.data import draws
from mmssl.data.images.views import STREAMS_PER_VIEW
from mmssl.errors import BadInput
from mmssl.kernels.views_torch import LUMA

CELL_OF_TILE = 85 / 64  # side of a cell, as a multiple of a tile's: section 4.2
GREY = 0.3  # probability that an image is grey: section 4.2
DISPLACED = 2 / 64  # largest displacement of a channel, as a fraction of the tile's side; at least a pixel: section 4.2
STREAMS = 1 + 2 + 6  # draws of a tile: grey (for the whole image), its place, and the displacement of each channel


def cell(side: int) -> int:
    """Side in pixels of the cells for tiles of `side` pixels."""
    return round(CELL_OF_TILE * side)


def fitting(side: int, grid: int) -> int:
    """The largest tiles whose cells an image of `side` pixels has `grid` times `grid` of: the network then sees tiles
    at the scale of whole images."""
    return max((tile for tile in range(1, side + 1) if grid * cell(tile) <= side), default=1)


def cut(pixels: Tensor, key: Tensor, grid: int, side: int) -> Tensor:
    """(batch, grid ** 2, 3, side, side): a tile at a random place of each cell, in rows and columns; with displaced
    channels or grey. pixels: (batch, 3, height, width). key: (batch,) int64, from which everything is drawn.

    Raises BadInput if a tile is larger than a cell.
    """
    height, width = (size // grid for size in pixels.shape[2:])
    if min(height, width) < side:
        raise BadInput(f"--tile_size {side}: a tile is larger than its cell of {height} x {width} pixels")
    cells, device = grid**2, pixels.device
    streams = STREAMS_PER_VIEW + torch.arange(STREAMS * cells, device=device)  # those before belong to the view
    drawn = draws.uniform(key[:, None], streams).view(len(key), STREAMS, cells)
    most = max(1, round(DISPLACED * side))
    shift = ((2 * most + 1) * drawn[:, 3:]).long().view(len(key), 2, 3, cells) - most
    index, along = torch.arange(cells, device=device), torch.arange(side, device=device)
    starts = []
    for axis, (length, number) in enumerate(((height, index // grid), (width, index % grid))):
        place = number * length + ((length - side + 1) * drawn[:, 1 + axis]).long()  # (batch, cells)
        start = place[:, None] + shift[:, axis]  # (batch, 3, cells)
        starts.append(start.clamp(0, pixels.shape[2 + axis] - side)[..., None] + along)  # (batch, 3, cells, side)
    rows, columns = starts
    image = torch.arange(len(key), device=device).view(-1, 1, 1, 1, 1)
    channel = torch.arange(3, device=device).view(-1, 1, 1, 1)
    tiles = pixels[image, channel, rows[..., None], columns[..., None, :]].transpose(1, 2)
    luma = sum(share * channel for share, channel in zip(LUMA, tiles.split(1, 2), strict=True)).expand_as(tiles)
    return torch.where(drawn[:, :1, :1, None, None] < GREY, luma, tiles)


def standardised(tiles: Tensor) -> Tensor:
    """Each tile and channel with a mean of zero and a deviation of one. tiles: (..., side, side)."""
    mean, variance = tiles.mean((-2, -1), keepdim=True), tiles.var((-2, -1), keepdim=True, correction=0)
    return (tiles - mean) / (variance + 1e-6).sqrt()


def together(tiles: Tensor) -> Tensor:
    """(batch, grid ** 2, 3, side, side) -> (batch, 3, grid * side, grid * side): side by side, for figures."""
    grid = round(tiles.shape[1] ** 0.5)
    return tiles.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
