"""Lab: published values, the round trip; the 313 bins; the soft encoding beside an exact search."""

from __future__ import annotations

import math

import pytest
import torch

from mmssl.data.images import lab


def one(*rgb: float) -> torch.Tensor:
    return torch.tensor(rgb).view(3, 1, 1)


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [  # skimage.color.rgb2lab prints these, with the same white
        ((1.0, 0.0, 0.0), (53.24, 80.09, 67.20)),
        ((0.0, 1.0, 0.0), (87.74, -86.18, 83.18)),
        ((0.0, 0.0, 1.0), (32.30, 79.19, -107.86)),
        ((1.0, 1.0, 1.0), (100.0, 0.0, 0.0)),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    ],
)
def test_the_primaries_have_their_published_colours(rgb, expected):
    torch.testing.assert_close(lab.from_srgb(one(*rgb)).flatten(), torch.tensor(expected), atol=0.02, rtol=0)


def test_a_colour_is_that_of_the_formulas_written_out():
    linear = [((value + 0.055) / 1.055) ** 2.4 for value in (0.2, 0.5, 0.8)]
    relative = [sum(m * v for m, v in zip(row, linear, strict=True)) / sum(row) for row in lab.XYZ_OF_RGB]
    x, y, z = (value ** (1 / 3) for value in relative)  # all above the line near zero
    expected = torch.tensor([116 * y - 16, 500 * (x - y), 200 * (y - z)])
    torch.testing.assert_close(lab.from_srgb(one(0.2, 0.5, 0.8)).flatten(), expected, atol=1e-4, rtol=0)


def test_there_and_back_is_the_same_colour():
    every = torch.cartesian_prod(*3 * [torch.arange(0, 256, 5) / 255]).T[:, :, None]
    torch.testing.assert_close(lab.to_srgb(lab.from_srgb(every)), every, atol=2e-5, rtol=0)


def test_grey_has_no_colour_and_its_lightness_grows():
    grey = (torch.arange(256) / 255).expand(3, 1, 256)
    lightness, a, b = lab.from_srgb(grey).unbind(0)
    assert torch.stack([a, b]).abs().max() < 1e-3 and (lightness.diff() > 0).all()


def test_colours_that_srgb_does_not_have_are_clipped():
    clipped = lab.to_srgb(torch.tensor([50.0, 128.0, -128.0]).view(3, 1, 1))
    assert clipped.min() >= 0 and clipped.max() <= 1


def test_there_are_313_bins_ten_apart_around_the_colours_of_srgb():
    bins = lab.bins()
    assert bins.shape == (313, 2) and (bins % 10 == 0).all() and len(bins.unique(dim=0)) == 313
    # of the bins that the authors publish: the first and last of some values of a
    found = {a: bins[bins[:, 0] == a][:, 1].tolist() for a in (-90, 0, 60, 100)}
    assert [(a, b[0], b[-1]) for a, b in found.items()] == [(-90, 50, 90), (0, -70, 100), (60, -110, 80), (100, -90, 0)]
    colours = lab.from_srgb(torch.rand(3, 300, 300, generator=torch.Generator().manual_seed(0)))[1:].flatten(1).T
    assert torch.cdist(colours, bins).amin(1).max() <= math.sqrt(50)  # half the diagonal of a square: none is missing


def test_the_soft_encoding_is_a_gaussian_over_the_five_nearest_bins():
    generator = torch.Generator().manual_seed(0)
    colours = lab.from_srgb(torch.rand(3, 300, 300, generator=generator))[1:].flatten(1).T
    index, weight = lab.soft_encoding(colours, lab.bins(), lab.candidates())
    distance, exact = torch.cdist(colours.double(), lab.bins().double()).topk(5, largest=False)
    gaussian = (-distance.square() / 50).exp()
    assert (index == exact).float().mean() > 0.999  # of two bins as far away, either
    torch.testing.assert_close(weight, (gaussian / gaussian.sum(1, keepdim=True)).float(), atol=1e-5, rtol=1e-4)


def test_a_colour_on_a_bin_weighs_it_most_and_its_four_neighbours_alike():
    index, weight = lab.soft_encoding(torch.tensor([[20.0, -10.0]]), lab.bins(), lab.candidates())
    centre, side = 1 / (1 + 4 * math.exp(-2)), math.exp(-2) / (1 + 4 * math.exp(-2))
    assert lab.bins()[index[0, 0]].tolist() == [20.0, -10.0]
    torch.testing.assert_close(weight, torch.tensor([[centre, side, side, side, side]]))


def test_the_annealed_mean_goes_from_the_mean_to_the_mode():
    bins, logits = torch.tensor([[0.0, 0.0], [30.0, -30.0]]), torch.tensor([0.4, 0.6]).log()
    torch.testing.assert_close(lab.annealed_mean(logits, bins, 1.0), torch.tensor([18.0, -18.0]))
    torch.testing.assert_close(lab.annealed_mean(logits, bins, 0.01), torch.tensor([30.0, -30.0]))
    share = 0.6 ** (1 / 0.38) / (0.6 ** (1 / 0.38) + 0.4 ** (1 / 0.38))
    torch.testing.assert_close(lab.annealed_mean(logits, bins, 0.38), 30 * share * torch.tensor([1.0, -1.0]))
