"""Counting: the loss against closed forms; tiles and whole; shortcuts and their cures; collapse."""

from __future__ import annotations

import collapse
import pytest
import torch
import torch.nn.functional as F
from tiny.counting import method, square
from tiny.simclr import batch, resnet, vit
from torch import Tensor, nn

from mmssl.data.images import views
from mmssl.errors import BadInput
from mmssl.methods.counting import FILTERS, Counting, blurring, counting_loss, shrinking, smoothed


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- the loss


def test_features_that_add_up_and_differ_between_images_have_no_loss():
    of_tiles = 10 * F.one_hot(torch.arange(6).view(3, 2) % 5, 5).float()  # (images, tiles, counts)
    tiles = of_tiles.sum(1)
    loss, metrics = counting_loss(tiles.clone(), tiles, margin=10.0)
    assert loss == 0 and metrics["own_nearer"] == 1 and metrics["distance_own"] == 0


def test_no_vector_that_is_the_same_for_all_pictures_has_less_loss_than_the_margin():
    """Zero satisfies the first term and pays the margin; c pays 9 |c|^2 for a whole of c and tiles of 4 c."""
    for scale in (0.0, 0.1, 0.5, 2.0):
        constant = torch.full((4, 3), scale)
        loss, metrics = counting_loss(constant, 4 * constant, margin=10.0)
        apart = 9 * 3 * scale**2
        assert loss.item() == pytest.approx(apart + max(0.0, 10.0 - apart), rel=1e-5) and loss >= 10 - 1e-5
        assert metrics["own_nearer"] == pytest.approx(0.5, abs=0.5 if scale else 1e-6)


def test_the_loss_is_the_two_terms_written_out():
    whole, tiles = 2 * noise(5, 7), 2 * noise(5, 7, seed=1)
    own, contrast, others, nearer = 0.0, 0.0, 0.0, 0.0
    for i in range(5):
        mine = sum((float(w) - float(t)) ** 2 for w, t in zip(whole[i], tiles[i], strict=True))
        own += mine / 5
        for j in range(5):
            if j != i:
                distance = sum((float(w) - float(t)) ** 2 for w, t in zip(whole[j], tiles[i], strict=True))
                contrast += max(0.0, 4.0 - distance) / 20
                others += distance / 20
                nearer += (mine < distance) / 20
    loss, metrics = counting_loss(whole, tiles, margin=4.0)
    assert loss.item() == pytest.approx(own + contrast, rel=1e-5)
    found = {name: value.item() for name, value in metrics.items()}
    assert found == pytest.approx({"own_nearer": nearer, "distance_own": own, "distance_others": others}, rel=1e-5)


def test_another_image_is_never_the_image_itself():
    whole = torch.eye(3) * 100
    assert counting_loss(whole, whole, margin=10.0)[0] == 0
    loss, _ = counting_loss(whole[[0, 0, 1]], whole[[0, 0, 1]], margin=10.0)  # the first two are equal
    assert loss.item() == pytest.approx(2 * 10 / 6)


def test_a_batch_of_one_image_is_refused():
    with pytest.raises(BadInput, match="a batch of one image has no other to compare with"):
        counting_loss(noise(1, 4), noise(1, 4), margin=10.0)


# ---------------------------------------------------------------- pictures


def test_filters_and_blurs_keep_the_brightness_and_the_place_of_what_they_smooth():
    for matrices, factor in ((shrinking(8), 2), (blurring(8), 1)):
        assert matrices.shape == (3, 8, 8 * factor)
        torch.testing.assert_close(matrices.sum(2), torch.ones(3, 8))
        ramp = torch.arange(8.0 * factor)
        inside = (matrices @ ramp)[:, 2:-2]  # at the ends a wide filter leans inwards
        expected = ((torch.arange(8.0) + 0.5) * factor - 0.5)[2:-2]
        torch.testing.assert_close(inside, expected.expand_as(inside), rtol=1e-4, atol=1e-3)
    area, pixels = shrinking(8)[FILTERS.index("area")], noise(16, 16)
    torch.testing.assert_close(area @ pixels @ area.T, F.avg_pool2d(pixels[None], 2)[0])
    assert torch.equal(blurring(8)[0], torch.eye(8))


def test_the_tiles_are_the_quarters_row_by_row_and_the_whole_is_all_of_them():
    pixels = noise(6, 3, 16, 16)
    area, none = shrinking(8)[:1], blurring(8)[:1]
    found = smoothed(pixels, torch.arange(6), area, none)
    assert found.shape == (6, 5, 3, 8, 8)
    for i, (y, x) in enumerate(((0, 0), (0, 8), (8, 0), (8, 8))):
        torch.testing.assert_close(found[:, 1 + i], pixels[:, :, y : y + 8, x : x + 8])
    torch.testing.assert_close(found[:, 0], F.avg_pool2d(pixels, 2))


def test_what_the_encoder_sees_is_made_of_the_view():
    one, given = method().train(), batch()
    (view,) = one.views(**given)
    assert torch.equal(one.pictures(**given), smoothed(view, given["key"], shrinking(8), blurring(8)))
    whole = one.eval().views.whole(given["pixel_values"])
    assert torch.equal(one.pictures(**given), smoothed(whole, given["key"], shrinking(8), blurring(8)))


def test_each_picture_is_smoothed_by_a_draw_of_its_own():
    """So that no filter is more frequent for tiles than for the whole."""
    shows = torch.tensor([0.0, 1.0, 2.0]).sqrt().view(3, 1, 1) / 8  # a picture's value is the index of its matrix
    found = smoothed(torch.ones(1800, 1, 16, 16), torch.arange(1800), shows.expand(3, 8, 16) / 2, shows.expand(3, 8, 8))
    chosen = found[..., 0, 0, 0].round().long()
    for first in range(5):
        for second in range(first):
            pairs = torch.bincount(3 * chosen[:, first] + chosen[:, second], minlength=9)
            assert len(pairs) == 9 and (pairs - 200).abs().max() < 60  # four deviations


def sharpness(pictures: Tensor) -> Tensor:
    """(...,): the energy of the differences between neighbouring pixels beside that of all pixels."""
    across = (pictures[..., 1:] - pictures[..., :-1]).square().mean((-1, -2, -3))
    return across / pictures.var((-1, -2, -3))


def test_in_images_that_look_alike_in_every_scale_sharpness_does_not_tell_a_tile_from_a_whole():
    """Such as photos, whose amplitude falls with 1 / frequency. The whole is as sharp after each filter as a tile after
    the blur that goes with it."""
    side, generator = 256, torch.Generator().manual_seed(0)
    frequency = (torch.fft.fftfreq(side)[:, None].square() + torch.fft.fftfreq(side).square()).sqrt()
    noise = torch.fft.fft2(torch.randn(100, 3, side, side, generator=generator))
    pixels = torch.fft.ifft2(noise / frequency.clamp(min=1 / side)).real[:, :, :32, :32]
    for filtered, blurred in zip(shrinking(16), blurring(16), strict=True):
        found = sharpness(smoothed(pixels, torch.arange(100), filtered[None], blurred[None]))
        assert found[:, 1:].mean().item() == pytest.approx(found[:, 0].mean().item(), rel=0.1)


def test_a_grey_image_is_grey_in_its_tiles_and_as_a_whole():
    view = views.Views([views.View(size=16, jitter=0.0, grey=0.5)], [0.5] * 3, [0.25] * 3)
    pixels = torch.randint(0, 256, (40, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = Counting(vit(), view, 8).train().pictures(pixels, torch.arange(40))
    grey = ((found - found[:, :, :1]).abs() < 1e-5).flatten(2).all(2)
    assert torch.equal(grey, grey[:, :1].expand_as(grey)) and 10 < grey[:, 0].sum() < 30


def test_the_tiles_are_summed_and_counts_are_not_negative():
    one, given = method().eval(), batch()
    (features, counts), rows = one.count(one.pictures(**given)), one.embed(**given)
    assert (counts >= 0).all() and (counts > 0).any()
    torch.testing.assert_close(rows["tiles"], counts[:, 1] + counts[:, 2] + counts[:, 3] + counts[:, 4])
    assert torch.equal(rows["whole"], counts[:, 0]) and torch.equal(rows["features"], features[:, 0])


def test_pictures_follow_from_the_key():
    one, given = method().train(), batch()
    part = one.embed(**{name: value[2:4] for name, value in given.items()})
    rows = one.embed(**given)
    for name in ("whole", "tiles", "features"):
        torch.testing.assert_close(part[name], rows[name][2:4], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one.embed(given["pixel_values"], given["key"] + 1)["whole"], rows["whole"], atol=1e-3)


def test_the_figure_has_the_images_in_the_order_of_their_counts():
    one, given = method().eval(), batch()
    columns = one.shown(**given)
    sums = one.embed(**given)["whole"].sum(1)
    images = one.views.to_unit_range(one.views.whole(given["pixel_values"]))
    assert torch.equal(columns["image"], images[sums.argsort()])
    assert columns["counts"].shape == columns["of its tiles"].shape == (6, 3, 4, 4)  # 16 of 24
    assert torch.equal(columns["of the next"][:-1], columns["counts"][1:])
    assert all(each.min() >= 0 and each.max() <= 1 for each in columns.values())


def test_a_view_that_cannot_be_cut_into_tiles_is_refused():
    view = views.Views([views.View(size=15)], [0.5] * 3, [0.25] * 3)
    with pytest.raises(BadInput, match="a view of size 15: it is cut into four tiles; give one even number"):
        Counting(vit(), view)


def test_the_heads_are_the_head_that_counts_alone(tmp_path):
    one, other = method(resnet), method(resnet)
    nn.init.constant_(one.head[-1].weight, 0.25)
    one.save_pretrained(tmp_path)
    assert all(name.startswith("head.") for name in one._heads())
    other.continue_from(str(tmp_path))
    assert (other.head[-1].weight == 0.25).all()


# ---------------------------------------------------------------- collapse


def test_without_the_contrast_it_collapses_to_counts_of_zero_and_the_monitor_says_so():
    assert "collaps" in collapse.said(Counting(collapse.encoder(), square(), 24, margin=0.0))


def test_with_it_it_does_not_collapse_in_200_steps():
    assert collapse.said(Counting(collapse.encoder(), square(), 24)) is None
