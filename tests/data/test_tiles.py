"""Tiles: where they are cut, what changes their colours, and that what they hide tells nothing of their position."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmssl.data.images import tiles
from mmssl.errors import BadInput

KEY = torch.arange(200)


def places(side: int = 8, size: int = 33) -> Tensor:
    """(batch, 9, 2, 3): row and column of each channel's upper left pixel, of images whose pixels are their places."""
    rows, columns = torch.meshgrid(*2 * [torch.arange(float(size))], indexing="ij")
    cut = [tiles.cut(each.expand(200, 3, -1, -1), KEY, 3, side) for each in (rows, columns)]
    return torch.stack([each[..., 0, 0] for each in cut], 2)


def test_a_tile_lies_anywhere_in_its_cell():
    middle = places().median(3).values  # of the channels; displacements are equally likely either way
    for cell in range(9):
        for axis, number in enumerate(divmod(cell, 3)):
            found = middle[:, cell, axis].round()
            assert found.min() >= 11 * number - 1 and found.max() <= 11 * number + 11 - 8 + 1
            assert len(found.unique()) >= 4


def test_pixels_of_a_tile_are_neighbours_in_the_image():
    image = torch.arange(33.0 * 33).view(33, 33).expand(20, 3, -1, -1)
    cut = tiles.cut(image, KEY[:20], 3, 8)
    assert ((cut.diff(dim=-1) - 1).abs() < 1e-3).all() and ((cut.diff(dim=-2) - 33).abs() < 1e-3).all()


def test_there_is_a_gap_of_a_quarter_of_a_cell_between_neighbours_on_average():
    """Noroozi & Favaro have 21 of 85 pixels."""
    left, right = places()[:, 0, 1].mean(1), places()[:, 1, 1].mean(1)
    assert (right - left - 8).mean() / 11 == pytest.approx(21 / 85, abs=0.06)
    assert tiles.cell(64) == 85


def test_the_channels_of_a_tile_are_displaced_against_each_other_in_all_directions():
    displaced = places()[..., 0] - places()[..., 2]  # red against blue, as a lens displaces them
    assert set(displaced.unique().int().tolist()) >= {-2, -1, 0, 1, 2}
    assert displaced[:, 4].mean(0).abs().max() < 0.4  # nothing is left of the direction


def test_a_third_of_the_images_is_grey_and_a_grey_image_is_so_in_all_tiles():
    cut = tiles.cut(torch.rand(200, 3, 33, 33, generator=torch.Generator().manual_seed(0)), KEY, 3, 8)
    grey = (cut == cut[:, :, :1]).flatten(2).all(2)
    assert 0.2 < grey.float().mean() < 0.4 and (grey.all(1) | ~grey.any(1)).all()


def test_what_is_cut_follows_from_the_key_alone():
    image = torch.rand(1, 3, 33, 33).expand(6, -1, -1, -1)
    cut = tiles.cut(image, KEY[:6], 3, 8)
    assert torch.equal(tiles.cut(image[:2], KEY[2:4], 3, 8), cut[2:4]) and not torch.equal(cut[0], cut[1])


def test_together_puts_tiles_in_rows_and_columns():
    image = torch.rand(2, 3, 12, 12)
    parts = image.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    assert torch.equal(tiles.together(parts), image)


def learned(statistics: Tensor, position: Tensor) -> float:
    """The accuracy on the second half of a softmax regression fitted to the first, with weight decay: differences of
    rounding are not to be enlarged."""
    x = (statistics - statistics.mean(0)) / statistics.std(0).clamp(min=0.1)
    layer = torch.nn.Linear(x.shape[1], 9)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=60, line_search_fn="strong_wolfe")
    half = len(x) // 2

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(layer(x[:half]), position[:half])
        value = value + 1e-2 * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return (layer(x[half:]).argmax(1) == position[half:]).float().mean().item()


def test_mean_and_deviation_tell_the_position_of_a_tile_but_not_of_a_standardised_one():
    """The light comes from above and from the left, and contrast grows to the right, in every image."""
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 33)
    light = 2 * ramp[:, None] + ramp
    pixels = light + (0.2 + ramp) * 0.3 * torch.randn(200, 3, 33, 33, generator=generator)
    position = torch.arange(9).repeat(200)
    raw = tiles.cut(pixels, KEY, 3, 8).flatten(0, 1)
    statistics = [torch.cat([t.mean((2, 3)), t.std((2, 3))], 1) for t in (raw, tiles.standardised(raw))]
    assert learned(statistics[0], position) > 0.5
    assert learned(statistics[1], position) < 0.25  # chance is 1/9


def test_a_flat_tile_is_standardised_to_zeros():
    assert (tiles.standardised(torch.full((1, 3, 4, 4), 0.7)).abs() < 1e-3).all()


def test_a_tile_larger_than_its_cell_is_refused():
    with pytest.raises(BadInput, match="--tile_size 12: a tile is larger than its cell of 11 x 11 pixels"):
        tiles.cut(torch.rand(1, 3, 33, 33), KEY[:1], 3, 12)


@pytest.mark.parametrize("side, tile", [(64, 16), (96, 24), (255, 64), (9, 2)])
def test_the_largest_tiles_that_fit_leave_room_for_their_cells(side, tile):
    assert tiles.fitting(side, 3) == tile
    assert 3 * tiles.cell(tile) <= side < 3 * tiles.cell(tile + 1)
