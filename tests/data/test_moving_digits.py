"""Moving digits: a function of seed, epoch and row; the borders reflect; masks, colours; time has no direction."""

from __future__ import annotations

import pytest
import torch

from mmssl.data import sources
from mmssl.data.built_in.moving_digits import MovingDigits, load
from mmssl.data.images import lab
from mmssl.errors import BadInput


def made(**options) -> MovingDigits:
    images = torch.zeros(3, 28, 28)
    images[:, 4:24, 8:20] = 1.0
    return MovingDigits(images, torch.tensor([3, 1, 4]), 40, 12, **options)


def test_a_clip_is_a_function_of_seed_epoch_and_row():
    one, other = made(seed=1), made(seed=1)
    rows = [3, 0, 7]
    assert torch.equal(one.__getitems__(rows)["pixel_values"][1], other.__getitems__([0])["pixel_values"][0])
    one.set_epoch(1)
    assert not torch.equal(one.__getitems__(rows)["key"], other.__getitems__(rows)["key"])
    assert not torch.equal(made(seed=2).__getitems__(rows)["key"], other.__getitems__(rows)["key"])
    held_out = made()
    before = held_out.__getitems__(rows)["pixel_values"]
    held_out.set_epoch(3)
    assert torch.equal(held_out.__getitems__(rows)["pixel_values"], before)


def test_digits_stay_inside_and_move_at_constant_speed_between_bounces():
    data = made(seed=0)
    places = data.places(data.keys(torch.arange(40))).float()
    assert places.min() >= 0 and places.max() <= 36
    steps = places.diff(dim=1).abs()
    assert steps.max() <= 6 and (steps.pow(2).sum(-1).sqrt() > 1).float().mean() > 0.95


def test_there_is_as_much_ink_as_in_its_digits():
    batch = made(seed=0, together=1).__getitems__(list(range(8)))["pixel_values"]
    assert batch.shape == (8, 12, 3, 64, 64) and torch.equal(batch[:, :, 0], batch[:, :, 2])
    ink = batch[:, :, 0].float().sum((2, 3)) / 255
    torch.testing.assert_close(ink, torch.full_like(ink, 20 * 12))


def test_masks_name_the_uppermost_digit():
    data = made(seed=0)
    batch, masks = data.__getitems__(list(range(8)))["pixel_values"], data.masks(list(range(8)))
    assert torch.equal(masks > 0, batch[:, :, 0] > 127) and set(masks.unique().tolist()) == {0, 1, 2}
    assert (masks == 2).sum((2, 3)).min() == 20 * 12  # the last one is never covered


def test_colours_differ_within_a_clip_and_share_one_lightness():
    data = made(seed=0, coloured=True)
    pixels, masks = data.__getitems__([0, 1])["pixel_values"].float() / 255, data.masks([0, 1])
    found = lab.from_srgb(pixels.flatten(0, 1)).unflatten(0, (2, 12)).movedim(2, -1)
    first, second = (found[0][masks[0] == number].mean(0) for number in (1, 2))
    assert first[0].item() == pytest.approx(second[0].item(), abs=6) and (first[1:] - second[1:]).norm() > 60


def test_a_reversed_clip_is_as_likely_as_a_clip():
    """Speeds, bounces and places have one distribution either way."""
    data = made(seed=0)
    places = data.places(data.keys(torch.arange(40000) % 2**20)).float()
    for measure in (lambda p: p[:, 0].mean(), lambda p: p[:, 1].var(), lambda p: p.diff(dim=1)[:, 0].abs().mean()):
        assert measure(places).item() == pytest.approx(measure(places.flip(1)).item(), rel=0.02)


def test_the_built_in_digits_have_the_size_and_margin_of_mnist():
    digits, label = load("digits")["train"]
    assert digits.shape[1:] == (28, 28) and len(label) == len(digits) == 1493
    assert digits[:, :4].max() == 0 and digits.max() == 1


def test_recipes_on_images_refuse_them_with_a_remedy():
    with pytest.raises(BadInput, match="moving_digits: clips, for recipes on video"):
        sources.load("moving_digits")


def test_frames_smaller_than_a_digit_are_refused():
    with pytest.raises(BadInput, match="--image_size 8"):
        made(side=8)
